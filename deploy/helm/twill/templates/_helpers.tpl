{{- define "twill.selector" -}}
app.kubernetes.io/name: twill
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "twill.labels" -}}
{{ include "twill.selector" . }}
app.kubernetes.io/part-of: twill
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "twill.name" -}}
{{- if contains "twill" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-twill{{ end -}}
{{- end }}

{{- define "twill.image" -}}
{{- $_ := required "image.repository: where the image is, as in registry.example/net/twill" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- /* How etcd is reached: the arguments of twilld and twill. */ -}}
{{- define "twill.etcdArgs" -}}
{{- $tls := .Values.etcd.tls.enabled -}}
{{- range .Values.etcd.endpoints }}
{{- if and $tls (hasPrefix "http://" .) }}
{{- fail (printf "etcd.endpoints: %s is not https, and etcd.tls.enabled is true" .) }}
{{- else if and (not $tls) (hasPrefix "https://" .) }}
{{- fail (printf "etcd.endpoints: %s is https, and etcd.tls.enabled is false" .) }}
{{- end }}
{{- end }}
- {{ printf "--etcd-endpoints=%s" (required "etcd.endpoints: at least one is needed, as in https://10.0.0.5:2379" (join "," .Values.etcd.endpoints)) | quote }}
- {{ printf "--etcd-prefix=%s" .Values.etcd.prefix | quote }}
{{- if $tls }}
- --etcd-cafile=/etc/twill/etcd/ca.crt
{{- if .Values.etcd.tls.clientCertificate }}
- --etcd-certfile=/etc/twill/etcd/tls.crt
- --etcd-keyfile=/etc/twill/etcd/tls.key
{{- end }}
{{- end }}
{{- end }}

{{- /* The user and the password, from this Secret. */ -}}
{{- define "twill.etcdUser" -}}
- name: FLANNELD_ETCD_USERNAME
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: username
- name: FLANNELD_ETCD_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: password
{{- end }}

{{- /* The Job's Secrets: it needs rights that the nodes lack, unless it is given their Secret by name. */ -}}
{{- define "twill.setupTls" -}}
{{- $node := .Values.etcd.tls.secretName -}}
{{- .Values.network.tlsSecretName | default (ternary (printf "%s-setup" $node) $node .Values.etcd.tls.clientCertificate) }}
{{- end }}

{{- define "twill.setupPassword" -}}
{{- $node := .Values.etcd.passwordSecretName -}}
{{- .Values.network.passwordSecretName | default (ternary (printf "%s-setup" $node) "" (ne $node "")) }}
{{- end }}

{{- /* Where twilld serves /healthz, /readyz and /metrics. The pod's address is the node's: the pods use the node's network. */ -}}
{{- define "twill.healthIp" -}}
{{- if not .Values.metrics.enabled -}}
127.0.0.1
{{- else -}}
{{ .Values.metrics.ip | default "$(POD_IP)" }}
{{- end }}
{{- end }}

{{- /* Where the kubelet finds them; without a host it asks the pod's address. */ -}}
{{- define "twill.probeHost" -}}
{{- if eq (include "twill.healthIp" .) "::" -}}
host: "::1"
{{- else if ne (include "twill.healthIp" .) "$(POD_IP)" -}}
host: 127.0.0.1
{{- end }}
{{- end }}
