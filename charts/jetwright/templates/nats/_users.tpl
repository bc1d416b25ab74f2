{{/*
The password that a Secret holds, or a new one where there is no such Secret yet: include "jetwright.password" (list $ namespace name key).
It is the same wherever it is asked for while the chart is rendered, since the server's configuration and the Secret have to agree.
*/}}
{{- define "jetwright.password" -}}
{{- $ := index . 0 }}{{ $namespace := index . 1 }}{{ $name := index . 2 }}{{ $key := index . 3 -}}
{{- if not (hasKey $.Values "knownPasswords") }}{{ $_ := set $.Values "knownPasswords" dict }}{{ end -}}
{{- $known := $.Values.knownPasswords }}{{ $id := printf "%s/%s/%s" $namespace $name $key -}}
{{- if not (hasKey $known $id) -}}
{{- $kept := dig "data" $key "" (lookup "v1" "Secret" $namespace $name) | b64dec -}}
{{- $_ := set $known $id ($kept | default (randAlphaNum 40)) -}}
{{- end -}}
{{- get $known $id -}}
{{- end -}}

{{/*
The users of the account "jetwright", by name: the namespace and name of their Secret, and what they may publish and subscribe to. As JSON.
*/}}
{{- define "jetwright.natsUsers" -}}
{{- $operator := dict "namespace" .Release.Namespace "secret" (printf "%s-nats-operator" (include "jetwright.fullname" .))
      "publish" (list "$JS.API.STREAM.LIST" "$JS.API.STREAM.INFO.*" "$JS.API.STREAM.CREATE.*" "$JS.API.STREAM.UPDATE.*"
        "$JS.API.STREAM.DELETE.*" "$JS.API.CONSUMER.LIST.*" "$JS.API.CONSUMER.INFO.*.*" "$JS.API.CONSUMER.CREATE.*.*" "$JS.API.CONSUMER.PAUSE.*.*"
        "$JS.API.CONSUMER.DELETE.*.*" "$KV.jetwright.>" "$JS.API.STREAM.MSG.GET.KV_jetwright" "$JS.FC.KV_jetwright.>")
      "subscribe" (list "$JS.EVENT.ADVISORY.>" "_INBOX_operator.>") -}}
{{- $users := dict "operator" $operator -}}
{{- range $name, $spec := .Values.nats.bundled.users -}}
{{- $publish := $spec.publish | default list -}}
{{- range $stream, $consumers := $spec.consume -}}
{{- range $consumer := $consumers -}}
{{- $publish = concat $publish (list
      (printf "$JS.API.CONSUMER.INFO.%s.%s" $stream $consumer)
      (printf "$JS.API.CONSUMER.MSG.NEXT.%s.%s" $stream $consumer)
      (printf "$JS.ACK.%s.%s.>" $stream $consumer)
      (printf "$JS.ACK.*.*.%s.%s.>" $stream $consumer)
      (printf "jetwright.dlq.%s.%s.>" $stream $consumer)) -}}
{{- end -}}
{{- end -}}
{{- range $stream, $consumers := $spec.consumePerKey -}}
{{- range $consumer, $partitions := $consumers -}}
{{- range $partition := until (int $partitions) -}}
{{- $one := printf "%s-p%d" $consumer $partition -}}
{{- $publish = concat $publish (list
      (printf "$JS.API.CONSUMER.INFO.%s.%s" $stream $one)
      (printf "$JS.API.CONSUMER.MSG.NEXT.%s.%s" $stream $one)
      (printf "$JS.ACK.%s.%s.>" $stream $one)
      (printf "$JS.ACK.*.*.%s.%s.>" $stream $one)) -}}
{{- end -}}
{{- $publish = concat $publish (list
      (printf "jetwright.dlq.%s.%s.>" $stream $consumer)
      (printf "$KV.jetwright.held.%s.%s.*" $stream $consumer)) -}}
{{- end -}}
{{- end -}}
{{- /* By the bucket jetwright, programs agree on who handles which partition: each says that it lives, reads all, and watches. */}}
{{- if $spec.consumePerKey -}}
{{- $publish = concat $publish (list
      (printf "$KV.jetwright.member.%s.>" $spec.namespace)
      "$JS.API.STREAM.MSG.GET.KV_jetwright" "$JS.API.STREAM.INFO.KV_jetwright"
      "$JS.API.CONSUMER.CREATE.KV_jetwright.*" "$JS.FC.KV_jetwright.>") -}}
{{- end -}}
{{- $read := $spec.read | default list -}}
{{- range $bucket := $spec.keyValue -}}
{{- $publish = append $publish (printf "$KV.%s.>" $bucket) -}}
{{- $read = append $read (printf "KV_%s" $bucket) -}}
{{- end -}}
{{- range $stream := $read -}}
{{- $publish = concat $publish (list
      (printf "$JS.API.STREAM.MSG.GET.%s" $stream)
      (printf "$JS.API.DIRECT.GET.%s" $stream)
      (printf "$JS.API.DIRECT.GET.%s.>" $stream)) -}}
{{- end -}}
{{- /* What cannot be parsed as it is delivered is fetched by its sequence. Last, so that a list that has it already stays as it is. */}}
{{- range $stream, $consumers := merge (dict) ($spec.consume | default dict) ($spec.consumePerKey | default dict) -}}
{{- if $consumers }}{{ $publish = append $publish (printf "$JS.API.STREAM.MSG.GET.%s" $stream) }}{{ end -}}
{{- end -}}
{{- $subscribe := concat ($spec.subscribe | default list) (list (printf "_INBOX_%s.>" $name)) -}}
{{- $_ := set $users $name (dict "namespace" $spec.namespace "secret" (printf "nats-%s" $name)
      "publish" (uniq $publish) "subscribe" (uniq $subscribe)) -}}
{{- end -}}
{{- toRawJson $users -}}
{{- end -}}

{{/* The servers' configuration. */}}
{{- define "jetwright.natsConfiguration" -}}
{{- $name := printf "%s-nats" (include "jetwright.fullname" .) -}}
{{- $bundled := .Values.nats.bundled -}}
port: 4222
http_port: 8222
pid_file: /var/run/nats/nats.pid
lame_duck_grace_period: 10s
lame_duck_duration: 30s

jetstream {
  store_dir: /data
  # 85 % of {{ $bundled.storage.size }}: the rest is for the servers' own logs and for what is being compacted.
  max_file_store: {{ mulf 0.85 (include "jetwright.bytes" $bundled.storage.size) | int64 }}
  max_memory_store: {{ include "jetwright.bytes" $bundled.memoryStore }}
}

system_account: system
accounts {
  system {
    users: [
      {user: system, password: {{ include "jetwright.password" (list . .Release.Namespace (printf "%s-system" $name) "password") | toRawJson }}}
    ]
  }
  jetwright {
    jetstream: enabled
    users: [
      {{- range $user, $spec := include "jetwright.natsUsers" . | fromJson }}
      {
        user: {{ $user | quote }}
        password: {{ include "jetwright.password" (list $ $spec.namespace $spec.secret "password") | toRawJson }}
        permissions {
          {{- /* An empty list would allow everything. */}}
          publish {{ if $spec.publish }}{allow: {{ toRawJson $spec.publish }}}{{ else }}{deny: ">"}{{ end }}
          subscribe {allow: {{ toRawJson $spec.subscribe }}}
        }
      }
      {{- end }}
    ]
  }
}
{{- if gt (int $bundled.replicas) 1 }}
{{- $password := include "jetwright.password" (list . .Release.Namespace (printf "%s-config" $name) "route-password") }}

cluster {
  name: {{ $name | quote }}
  port: 6222
  # Clients know the Service, which outlives the addresses of pods.
  no_advertise: true
  authorization {user: route, password: {{ $password | quote }}}
  routes: [
    {{- range $i := until (int $bundled.replicas) }}
    "nats://route:{{ $password }}@{{ $name }}-{{ $i }}.{{ $name }}-headless:6222"
    {{- end }}
  ]
}
{{- end }}
{{- end -}}
