{{- /* The image of a program: include "shop.image" (list . "user-service") */}}
{{- define "shop.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
jetwright/{{ index . 1 }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}
