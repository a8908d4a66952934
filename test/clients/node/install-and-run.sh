#!/usr/bin/env bash
# install-and-run.sh CLIENT [install]: puts the client's packages, as its lock file has them, into $CACHE at its installation and runs
# its program afterwards. Native parts are built here from the sources in the packages; nothing but the registry's packages is fetched.
set -euo pipefail
cd "$(dirname "$0")/$1"
if [ "${2:-}" = install ]; then
  want=$(cat package.json package-lock.json; node --version)
  [ "$want" != "$(cat "$CACHE/installed" 2>/dev/null || true)" ] || exit 0
  rm -rf "$CACHE/node_modules" "$CACHE/installed"
  cp package.json package-lock.json "$CACHE"
  # Node's headers, where they came with Node: node-gyp downloads them otherwise.
  prefix=$(node -p 'path.resolve(process.execPath, "../..")')
  if [ -f "$prefix/include/node/node.h" ]; then export npm_config_nodedir=$prefix; fi
  cd "$CACHE"
  npm_config_build_from_source=true npm ci --no-audit --no-fund --foreground-scripts >"$CACHE/npm.log" 2>&1 ||
    { tail -n 30 "$CACHE/npm.log" >&2; echo "the npm packages cannot be installed or their native parts not be built" >&2; exit 77; }
  printf '%s\n' "$want" >"$CACHE/installed"
  exit 0
fi
NODE_PATH=$CACHE/node_modules exec node main.js
