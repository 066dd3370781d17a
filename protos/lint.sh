#!/bin/sh
# Lint the protos, and compare them with the last release tag once there is one. Needs npx: the npm package brings buf.
set -eu
cd "$(dirname "$0")"
buf() { npx --yes --loglevel=error @bufbuild/buf@1.75.0 "$@"; }

buf lint
buf format --diff --exit-code

if tag=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null); then
  echo "buf breaking: comparing with $tag"
  buf breaking --against "$(git rev-parse --git-common-dir)#tag=$tag,subdir=protos"
else
  echo "buf breaking: no release tag yet"
fi
