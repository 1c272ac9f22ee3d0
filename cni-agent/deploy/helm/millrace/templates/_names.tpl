{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: millrace
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "millrace.serviceAccount" -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- define "millrace.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "millrace.http" -}}
{{- with .Values.http }}{{ if contains ":" .host }}[{{ .host }}]{{ else }}{{ .host }}{{ end }}:{{ .port }}{{ end }}
{{- end }}

{{- /* Where the kubelet, on the same machine, reaches the agent. */ -}}
{{- define "millrace.probedHost" -}}
{{- with .Values.http.host }}{{ if eq . "0.0.0.0" }}127.0.0.1{{ else if eq . "::" }}::1{{ else }}{{ . }}{{ end }}{{ end }}
{{- end }}
