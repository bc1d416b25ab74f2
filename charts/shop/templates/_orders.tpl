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
