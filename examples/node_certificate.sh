#!/bin/sh
# A certificate of this machine for Ray's TLS, signed by the cluster's own authority: node_certificate.sh FOLDER
# FOLDER holds ca.crt and ca.key; node.crt and node.key are written beside them.
set -eu
cd "$1"
umask 077
names="DNS:$(hostname),DNS:localhost,IP:127.0.0.1"
for address in $(hostname -I 2>/dev/null); do names="$names,IP:$address"; done
openssl req -newkey rsa:2048 -nodes -keyout node.key -out node.csr -subj "/CN=$(hostname)" 2>/dev/null
printf 'subjectAltName=%s\n' "$names" > node.ext
openssl x509 -req -in node.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile node.ext -out node.crt 2>/dev/null
rm -f node.csr node.ext
