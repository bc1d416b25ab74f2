{{/*
How many partitions the stream of orders has, 0 for none. What is there keeps its form: a stream with events never gets other partitions.
*/}}
{{- define "shop.partitions" -}}
{{- $there := lookup "jetwright.dev/v1alpha1" "EventStream" .Release.Namespace "orders" -}}
{{- if ne (toString .Values.orders.partitions) "auto" -}}
{{- int .Values.orders.partitions -}}
{{- else if not $there -}}
8
{{- else if dig "spec" "partitions" false $there -}}
{{- dig "spec" "partitions" "count" 8 $there | int -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/* Whether orders are fulfilled with order per key. What is there keeps its form here, too. */}}
{{- define "shop.ordering" -}}
{{- $there := lookup "jetwright.dev/v1alpha1" "EventConsumer" .Release.Namespace "order-fulfilment" -}}
{{- if ne .Values.orders.ordering "auto" -}}
{{- .Values.orders.ordering -}}
{{- else if $there -}}
{{- dig "spec" "ordering" "Unordered" $there -}}
{{- else if include "shop.partitions" . | int -}}
PerKey
{{- else -}}
Unordered
{{- end -}}
{{- end -}}

{{/*
How the pods that fulfil orders are autoscaled, as JSON; nothing where they are not. What is there keeps its form here, too. More pods than partitions
have nothing to do, and more than 8 are no small shop's.
*/}}
{{- define "shop.autoscaling" -}}
{{- $exists := lookup "jetwright.dev/v1alpha1" "EventConsumer" .Release.Namespace "order-fulfilment" -}}
{{- $there := dig "spec" "workload" "autoscaling" dict $exists -}}
{{- $values := default dict .Values.orders.autoscaling -}}
{{- $given := omit $values "enabled" -}}
{{- $few := int .Values.orders.replicas -}}
{{- $enabled := toString $values.enabled -}}
{{- if eq $enabled "auto" -}}
{{- $is_new := and (not $exists) $few (eq (include "shop.ordering" .) "PerKey") -}}
{{- $enabled = ternary "true" "false" (not (not (or $given $there $is_new))) -}}
{{- end -}}
{{- if eq $enabled "true" -}}
{{- $many := include "shop.partitions" . | int | default 8 | min 8 | max $few -}}
{{- $autoscaling := dict "maxReplicas" $many -}}
{{- /* Helm's merge takes 0 for nothing. */ -}}
{{- range $fields := list $there $given -}}
{{- range $field, $value := $fields -}}
{{- $_ := set $autoscaling $field $value -}}
{{- end -}}
{{- end -}}
{{- if not (hasKey $autoscaling "minReplicas") -}}
{{- $_ := set $autoscaling "minReplicas" (min $few $autoscaling.maxReplicas) -}}
{{- end -}}
{{- toJson $autoscaling -}}
{{- end -}}
{{- end -}}
