# Keys and certificates, with commands that can be typed one by one. Sourced by loopback.sh and machines.sh.

# A certificate authority of one's own: ca.pem goes to everybody, ca.key stays with whoever runs the SuperLink.
make_ca() { # FOLDER
  mkdir -p "$1" && chmod 700 "$1"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 365 -subj "/CN=fedvlm-secure CA" \
    -keyout "$1/ca.key" -out "$1/ca.pem"
}

# A server certificate for a host name or an address, such as DNS:superlink.example.org or IP:127.0.0.1.
make_certificate() { # FOLDER NAME SUBJECT-ALTERNATIVE-NAME
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=$2" \
    -keyout "$1/$2.key" -out "$1/$2.csr"
  openssl x509 -req -in "$1/$2.csr" -CA "$1/ca.pem" -CAkey "$1/ca.key" -CAcreateserial -days 365 \
    -extfile <(printf 'subjectAltName=%s\nbasicConstraints=critical,CA:false\n' "$3") -out "$1/$2.pem"
  rm "$1/$2.csr"
}

# The key by which the SuperLink knows a SuperNode: supernode.key stays, supernode.key.pub is registered.
make_supernode_key() { # FOLDER
  ssh-keygen -q -t ecdsa -b 384 -N "" -C "" -f "$1/supernode.key"
}

# Where the `flwr` command finds the SuperLink.
write_connection() { # FLWR_HOME NAME ADDRESS CA
  mkdir -p "$1"
  printf '[superlink]\ndefault = "%s"\n\n[superlink.%s]\naddress = "%s"\nroot-certificates = "%s"\n' "$2" "$2" "$3" "$4" \
    > "$1/config.toml"
}
