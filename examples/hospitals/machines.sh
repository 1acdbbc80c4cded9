#!/usr/bin/env bash
# What differs when every party has a machine of its own: one subcommand for each. See docs/deployment/README.md.
#
#   machines.sh keys FOLDER HOST          at the server, once: certificate authority, and a certificate for HOST
#   machines.sh superlink FOLDER          at the server: the SuperLink, for this machine only; nginx goes in front of it
#   machines.sh register FOLDER KEY.pub   at the server, for every hospital: lets its SuperNode in
#   machines.sh run FOLDER                at the server: begins the run, or goes on with it
#   machines.sh node-key FOLDER           at a hospital, once: the key that the server registers
#   machines.sh hospital FOLDER HOST:PORT at a hospital: its SuperNode; HOST:PORT is nginx at the server
#
# FOLDER is the party's own; before the start it holds identity.key, roster.cbor and settings.toml (docs/roster.md), at a
# hospital also ca.pem from the server. PORT, 9093 at the server and 9094 at a hospital, is for this machine only.
set -euo pipefail
umask 077
usage() { sed -n 's/^#   //p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
here=$(cd "$(dirname "$0")" && pwd)
. "$here/keys.sh"
what=$1
folder=$(cd "$2" && pwd)
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_HOME="$folder/flwr" NO_PROXY=127.0.0.1,localhost

case $what in
  keys)
    [ $# -eq 3 ] || usage
    kind=DNS
    [[ $3 =~ ^[0-9.]+$ || $3 == *:* ]] && kind=IP
    make_ca "$folder/tls"
    make_certificate "$folder/tls" superlink "$kind:$3,DNS:localhost,IP:127.0.0.1"
    echo "give every hospital $folder/tls/ca.pem; tls/ca.key stays here" >&2
    ;;
  superlink)
    write_connection "$FLWR_HOME" consortium "127.0.0.1:${PORT:-9093}" "$folder/tls/ca.pem"
    exec flower-superlink --host 127.0.0.1 --port "${PORT:-9093}" --database "$folder/superlink.sqlite" \
      --enable-supernode-auth --disable-runtime-dependency-installation --ssl-certfile "$folder/tls/superlink.pem" \
      --ssl-keyfile "$folder/tls/superlink.key" --ssl-ca-certfile "$folder/tls/ca.pem"
    ;;
  register)
    [ $# -eq 3 ] || usage
    exec flwr supernode register "$3" consortium
    ;;
  run)
    exec flwr run "$here" consortium --run-config "folder=\"$folder\"" --stream
    ;;
  node-key)
    make_supernode_key "$folder"
    # For the SuperNode's own interface to the app that it starts, on this machine only.
    make_ca "$folder/tls"
    make_certificate "$folder/tls" loopback IP:127.0.0.1,DNS:localhost
    echo "have the server register $folder/supernode.key.pub" >&2
    ;;
  hospital)
    [ $# -eq 3 ] || usage
    exec flower-supernode --superlink "$3" --root-certificates "$folder/ca.pem" --port "${PORT:-9094}" \
      --auth-supernode-private-key "$folder/supernode.key" --node-config "folder=\"$folder\"" \
      --ssl-certfile "$folder/tls/loopback.pem" --ssl-keyfile "$folder/tls/loopback.key" \
      --ssl-ca-certfile "$folder/tls/ca.pem"
    ;;
  *) usage ;;
esac
