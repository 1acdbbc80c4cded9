#!/usr/bin/env bash
# What differs when every party has a machine of its own: one subcommand for each of them. See docs/deployment.md.
#
#   machines.sh superlink FOLDER          at the server, once: certificate authority, certificate, SuperLink
#   machines.sh register FOLDER KEY.pub   at the server, for every hospital: lets its SuperNode in
#   machines.sh hospital FOLDER           at a hospital: its SuperNode
#   machines.sh run FOLDER                at the server: begins the run, or goes on with it
#
# SUPERLINK names the server as hospitals reach it, host:port. FOLDER is the party's own; before the start it holds
# identity.key, roster.cbor and settings.toml (docs/roster.md), at a hospital also ca.pem from the server.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
: "${SUPERLINK:?name the SuperLink as hospitals reach it, such as SUPERLINK=superlink.example.org:9092}"
here=$(cd "$(dirname "$0")" && pwd)
. "$here/keys.sh"
what=$1
folder=$(cd "$2" && pwd)
host=${SUPERLINK%:*} port=${SUPERLINK##*:}
export FLWR_TELEMETRY_ENABLED=0 FLWR_HOME="$folder/flwr"
kind=DNS && [[ $host =~ ^[0-9.]+$ ]] && kind=IP

case $what in
  superlink)
    if [ ! -e "$folder/tls/ca.pem" ]; then
      make_ca "$folder/tls"
      make_certificate "$folder/tls" superlink "$kind:$host,IP:127.0.0.1"
      write_connection "$FLWR_HOME" consortium "127.0.0.1:$port" "$folder/tls/ca.pem"
      echo "give every hospital $folder/tls/ca.pem" >&2
    fi
    # 0.0.0.0: hospitals connect to it from outside. It is the only port in the whole federation that must be reachable.
    exec flower-superlink --host "${LISTEN:-0.0.0.0}" --port "$port" --database "$folder/superlink.sqlite" \
      --enable-supernode-auth --disable-runtime-dependency-installation --ssl-certfile "$folder/tls/superlink.pem" \
      --ssl-keyfile "$folder/tls/superlink.key" --ssl-ca-certfile "$folder/tls/ca.pem"
    ;;
  register)
    exec flwr supernode register "${3:?name the hospital\'s supernode.key.pub}" consortium
    ;;
  hospital)
    if [ ! -e "$folder/supernode.key" ]; then
      make_supernode_key "$folder"
      # The SuperNode's own interface for the app that it starts, on this machine only.
      make_ca "$folder/tls"
      make_certificate "$folder/tls" loopback IP:127.0.0.1,DNS:localhost
      echo "have the server register $folder/supernode.key.pub, then start this again" >&2
      exit 0
    fi
    exec flower-supernode --superlink "$SUPERLINK" --root-certificates "$folder/ca.pem" --port "${OWN_PORT:-9094}" \
      --auth-supernode-private-key "$folder/supernode.key" --node-config "folder=\"$folder\"" \
      --ssl-certfile "$folder/tls/loopback.pem" --ssl-keyfile "$folder/tls/loopback.key" \
      --ssl-ca-certfile "$folder/tls/ca.pem"
    ;;
  run)
    exec flwr run "$here" consortium --run-config "folder=\"$folder\"" --stream
    ;;
  *)
    sed -n 's/^#   //p' "$0" >&2
    exit 2
    ;;
esac
