{{/* Labels of everything; selectors add app.kubernetes.io/component. */}}
{{- define "paceline.selector" -}}
app.kubernetes.io/name: paceline
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "paceline.labels" -}}
{{ include "paceline.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* A new configuration makes new pods. */}}
{{- define "paceline.podAnnotations" -}}
checksum/config: {{ toYaml .Values.config | sha256sum }}
{{- end }}

{{/* What all pods have in common. */}}
{{- define "paceline.podSpec" -}}
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "paceline.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{/* Probes of a gRPC service at a port. Not ready is no reason to be killed. */}}
{{- define "paceline.grpcProbes" -}}
livenessProbe:
  grpc: {port: {{ . }}, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  grpc: {port: {{ . }}, service: readiness}
  periodSeconds: 5
  timeoutSeconds: 3
{{- end }}

{{/* An environment variable from the secret: dict with root, name, key. */}}
{{- define "paceline.secretEnv" -}}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .root.Values.secretName }}, key: {{ .key }}}}
{{- end }}
