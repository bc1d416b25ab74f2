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

{{/* Labels of every object: include "jetwright.labels" (list $ "operator") */}}
{{- define "jetwright.labels" -}}
{{- $ := index . 0 -}}
{{ include "jetwright.selectorLabels" . }}
app.kubernetes.io/part-of: jetwright
app.kubernetes.io/managed-by: {{ $.Release.Service }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" | trunc 63 }}
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels by which pods are found; never to be changed: include "jetwright.selectorLabels" (list $ "operator") */}}
{{- define "jetwright.selectorLabels" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ eq (index . 1) "nats" | ternary "nats" (default $.Chart.Name $.Values.nameOverride) | quote }}
app.kubernetes.io/instance: {{ $.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of pods: without versions, so that an upgrade that changes nothing else in a pod does not start it anew. */}}
{{- define "jetwright.podLabels" -}}
{{- $ := index . 0 -}}
{{ include "jetwright.selectorLabels" . }}
app.kubernetes.io/part-of: jetwright
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Reference of an image: include "jetwright.image" (list .Values.image "default tag") */}}
{{- define "jetwright.image" -}}
{{- $image := index . 0 -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default (index . 1) }}{{ end -}}
{{- end -}}

{{- define "jetwright.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* What Pod Security "restricted" asks of a pod, and of a container. */}}
{{- define "jetwright.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "jetwright.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
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
