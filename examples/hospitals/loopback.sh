#!/usr/bin/env bash
# A whole deployment on this machine, as it would be on many: SuperLink and SuperNodes as processes, TLS and SuperNode
# authentication on, keys and roster made by the commands that a consortium would use.
#
#   examples/hospitals/loopback.sh FOLDER SETTINGS.toml HOSPITAL HOSPITAL HOSPITAL…
#
# FOLDER must not exist. HOSPITALs are sites of the data set in SETTINGS.toml. Ends everything when the run is over.
# Meanwhile whoever has an account on this machine may send Flower an app that runs as you.
set -euo pipefail
umask 077
[ $# -ge 5 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
[ ! -e "$1" ] || { echo "$1 exists; name another folder" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
. "$here/keys.sh"
mkdir -p "$1" && folder=$(cd "$1" && pwd)
settings=$2
shift 2
port=${PORT:-9092}
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_HOME="$folder/flwr" NO_PROXY=127.0.0.1,localhost

# Keys. On many machines every party runs its own lines, and only public files travel.
make_ca "$folder/tls"
make_certificate "$folder/tls" loopback IP:127.0.0.1,DNS:localhost
fedvlm-secure roster key consortium --out "$folder/consortium/consortium.key" > /dev/null
for name in server "$@"; do
  fedvlm-secure roster key "$name" --out "$folder/$name/identity.key" > /dev/null
  cp "$settings" "$folder/$name/settings.toml"
done
for name in "$@"; do
  make_supernode_key "$folder/$name"
  printf 'sites = ["%s"]\n' "$name" > "$folder/$name/hospital.toml"
done

# The roster, which the consortium signs and every party gets.
roster="$folder/consortium/roster.cbor"
fedvlm-secure roster new "$roster" --consortium "$folder/consortium/consortium.pub" --server "$folder/server/identity.pub" \
  --expires "$(date -u -d '+365 days' +%F)" > /dev/null
for name in "$@"; do fedvlm-secure roster add "$roster" "$folder/$name/identity.pub" > /dev/null; done
fedvlm-secure roster sign "$roster" --key "$folder/consortium/consortium.key"
for name in server "$@"; do cp "$roster" "$folder/$name/roster.cbor"; done

# Processes.
tls=(--ssl-certfile "$folder/tls/loopback.pem" --ssl-keyfile "$folder/tls/loopback.key" --ssl-ca-certfile "$folder/tls/ca.pem")
pids=()
trap 'kill "${pids[@]}" 2> /dev/null || true; wait' EXIT
flower-superlink --port "$port" --database "$folder/superlink.sqlite" --enable-supernode-auth \
  --disable-runtime-dependency-installation "${tls[@]}" > "$folder/superlink.log" 2>&1 &
pids+=($!)
until (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
  kill -0 "${pids[0]}" 2> /dev/null || { tail -n 5 "$folder/superlink.log" >&2; exit 1; }
  sleep 0.2
done
write_connection "$FLWR_HOME" loopback "127.0.0.1:$port" "$folder/tls/ca.pem"
own=$port
for name in "$@"; do
  flwr supernode register "$folder/$name/supernode.key.pub" loopback > /dev/null
  own=$((own + 1))
  FLWR_HOME="$folder/$name/flwr" flower-supernode --superlink "127.0.0.1:$port" --root-certificates "$folder/tls/ca.pem" \
    --auth-supernode-private-key "$folder/$name/supernode.key" --port "$own" "${tls[@]}" \
    --node-config "folder=\"$folder/$name\"" > "$folder/$name.log" 2>&1 &
  pids+=($!)
done

# The run, with the server's log. What the parties have afterwards lies in FOLDER/server/runs and FOLDER/HOSPITAL/runs.
flwr run "$here" loopback --run-config "folder=\"$folder/server\"" --stream
# Flower's command ends well whatever became of the run.
ls "$folder"/server/runs/*/coordinator/summary.json
