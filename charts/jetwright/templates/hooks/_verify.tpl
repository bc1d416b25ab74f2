{{/* Labels and annotations of what belongs to a hook, gone with its end: include "jetwright.verifyMetadata" (list $ "test" "weight"), and behind these whose output Helm shows */}}
{{- define "jetwright.verifyMetadata" -}}
{{- $hook := dict "helm.sh/hook" (index . 1) "helm.sh/hook-weight" (index . 2)
      "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded,hook-failed" -}}
{{- if gt (len .) 3 }}{{ $_ := set $hook "helm.sh/hook-output-log-policy" (index . 3) }}{{ end -}}
{{- include "jetwright.metadata" (list (index . 0) "verify" $hook) -}}
{{- end -}}

{{/* The pod of a hook, which runs a subcommand of the operator: include "jetwright.verifyPod" (list $ "service account" (list "subcommand")) */}}
{{- define "jetwright.verifyPod" -}}
{{- $ := index . 0 -}}
serviceAccountName: {{ index . 1 }}
automountServiceAccountToken: true
enableServiceLinks: false
restartPolicy: Never
{{- include "jetwright.pullSecrets" $ }}
securityContext: {{- include "jetwright.securityContext" $.Values.podSecurityContext | nindent 2 }}
containers:
  - name: verify
    image: {{ include "jetwright.image" (list $ $.Values.image $.Chart.AppVersion) }}
    imagePullPolicy: {{ $.Values.image.pullPolicy }}
    args: {{ toRawJson (index . 2) }}
    env:
      - {name: LOG_FORMAT, value: text}
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {memory: 64Mi}
    securityContext: {{- include "jetwright.securityContext" $.Values.securityContext | nindent 6 }}
{{- with $.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
