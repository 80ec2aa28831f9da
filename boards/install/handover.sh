#!/bin/sh
# Runs as root before each start: copies what only root may read of $1 (the owner's
# etc folder) to $2 (the service's folder in memory), for the service's user alone.
set -eu
user=$(stat -c %u "$2")
umask 077
for name in token tls.key; do
    rm -f "$2/$name"
    if [ -f "$1/$name" ]; then
        cp "$1/$name" "$2/$name"
        chown "$user" "$2/$name"
        chmod 0400 "$2/$name"
    fi
done
