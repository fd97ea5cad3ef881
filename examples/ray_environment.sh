# What every process that talks to Ray needs, on every machine of ray_config.yaml: the token, and TLS.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/sigmoe-secrets/token"
export RAY_USE_TLS=1
export RAY_TLS_CA_CERT="$HOME/sigmoe-secrets/ca.crt"
export RAY_TLS_SERVER_CERT="$HOME/sigmoe-secrets/node.crt" RAY_TLS_SERVER_KEY="$HOME/sigmoe-secrets/node.key"
