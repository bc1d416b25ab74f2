{{/* First part of the names of all objects. */}}
{{- define "jetwright.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
Labels and annotations of an object: include "jetwright.metadata" (list $ "operator"), and behind these annotations and labels of its own, as
dicts, either of which wins over what is common.
*/}}
{{- define "jetwright.metadata" -}}
{{- $ := index . 0 }}{{ $annotations := dict }}{{ $labels := dict -}}
{{- if gt (len .) 2 }}{{ $annotations = index . 2 }}{{ end -}}
{{- if gt (len .) 3 }}{{ $labels = index . 3 }}{{ end -}}
{{- $chart := dict "app.kubernetes.io/part-of" "jetwright" "app.kubernetes.io/version" $.Chart.AppVersion
      "helm.sh/chart" (printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" | trunc 63) -}}
{{- $fixed := include "jetwright.selectorLabels" . | fromYaml }}{{ $_ := set $fixed "app.kubernetes.io/managed-by" $.Release.Service -}}
labels: {{- merge $fixed $labels $.Values.commonLabels $chart | toYaml | nindent 2 }}
{{- with merge (dict) $annotations $.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels by which pods are found; never to be changed: include "jetwright.selectorLabels" (list $ "operator") */}}
{{- define "jetwright.selectorLabels" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ eq (index . 1) "nats" | ternary "nats" (default $.Chart.Name $.Values.nameOverride) | quote }}
app.kubernetes.io/instance: {{ $.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/*
Labels of pods: include "jetwright.podLabels" (list $ "operator" .Values.podLabels). Without versions, so that an upgrade that changes nothing
else in a pod does not restart it.
*/}}
{{- define "jetwright.podLabels" -}}
{{- $ := index . 0 -}}
{{- merge (include "jetwright.selectorLabels" . | fromYaml) (index . 2) $.Values.commonLabels (dict "app.kubernetes.io/part-of" "jetwright") | toYaml }}
{{- end -}}

{{/* Reference of an image: include "jetwright.image" (list $ .Values.image "default tag") */}}
{{- define "jetwright.image" -}}
{{- $ := index . 0 }}{{ $image := index . 1 -}}
{{- with $.Values.global.imageRegistry | default $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default (index . 2) }}{{ end -}}
{{- end -}}

{{/* Secrets with which images are pulled; each is a name, or {name: …} as in a pod. */}}
{{- define "jetwright.pullSecrets" -}}
{{- $secrets := list -}}
{{- range concat (.Values.global.imagePullSecrets | default list) .Values.imagePullSecrets -}}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) -}}
{{- end -}}
{{- with $secrets | uniq }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A security context without what was set to null, as where OpenShift assigns users. */}}
{{- define "jetwright.securityContext" -}}
{{- $context := dict -}}
{{- range $field, $value := . -}}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $context $field $value }}{{ end -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Constraints of a spread; one without a labelSelector gets that of the pods: include "jetwright.spread" (list constraints selector) */}}
{{- define "jetwright.spread" -}}
{{- $selector := dict "labelSelector" (dict "matchLabels" (index . 1 | fromYaml)) -}}
{{- range index . 0 }}
- {{ hasKey . "labelSelector" | ternary . (merge (deepCopy .) $selector) | toYaml | nindent 2 | trim }}
{{- end }}
{{- end -}}

{{/* NetworkPolicyPeers that may reach metrics: those that are named, or else the pods of the release's namespace. */}}
{{- define "jetwright.metricsPeers" -}}
{{- $peers := .Values.networkPolicy.metricsFrom -}}
{{- with .Values.networkPolicy.metricsNamespaces -}}
{{- $named := dict "key" "kubernetes.io/metadata.name" "operator" "In" "values" . -}}
{{- $peers = append $peers (dict "namespaceSelector" (dict "matchExpressions" (list $named))) -}}
{{- end -}}
{{- $peers | default (list (dict "podSelector" dict)) | toYaml -}}
{{- end -}}

{{- define "jetwright.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (printf "%s-operator" (include "jetwright.fullname" .)) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Addresses of NATS as the operator reaches it. */}}
{{- define "jetwright.natsUrl" -}}
{{- if .Values.nats.bundled.enabled -}}
nats://{{ include "jetwright.fullname" . }}-nats.{{ .Release.Namespace }}.svc:4222
{{- else -}}
{{- .Values.nats.url -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the operator's NATS credentials; empty where it has none. */}}
{{- define "jetwright.natsCredentials" -}}
{{- if .Values.nats.bundled.enabled -}}
{{ include "jetwright.fullname" . }}-nats-operator
{{- else -}}
{{- .Values.nats.credentialsSecret -}}
{{- end -}}
{{- end -}}

{{/* Bytes of a Kubernetes quantity such as 10Gi. */}}
{{- define "jetwright.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mulf (float64 (regexFind "^[0-9.]+" .)) (get $units (regexFind "[A-Za-z]*$" .)) | int64 -}}
{{- end -}}
