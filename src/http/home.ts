/** What the page tells. */
export interface HomeFacts {
  /** How clients reach this daemon: `https://mirror.example.com`. */
  origin: string;
  upstreams: readonly string[];
  version: string;
}

/** The page at `/`: what this is, and how to point docker and containerd at it. As HTML for a browser, as text for curl. */
export function homePage(html: boolean, facts: HomeFacts): { type: string; body: string } {
  const { origin, upstreams, version } = facts;
  const host = origin.replace(/^https?:\/\//, "");
  const insecure = origin.startsWith("http://") && !/^(localhost|127\.|\[::1\])/.test(host);
  const sections = [
    {
      title: "docker: mirror Docker Hub",
      text: "Put this into /etc/docker/daemon.json, then restart docker. Pulls of Docker Hub's images go through here.",
      code: JSON.stringify(
        { "registry-mirrors": [origin], ...(insecure ? { "insecure-registries": [host] } : {}) },
        undefined,
        2,
      ),
    },
    {
      title: "containerd: mirror any upstream",
      text: `Put this into /etc/containerd/certs.d/docker.io/hosts.toml; likewise for ${upstreams.join(", ") || "each upstream"}.`,
      code: `server = "https://registry-1.docker.io"\n\n[host."${origin}"]\n  capabilities = ["pull", "resolve"]`,
    },
    {
      title: "any client: name the upstream in the path",
      text: "Works without any set-up of the client.",
      code: `docker pull ${host}/${upstreams[0] ?? "docker.io"}/library/alpine`,
    },
  ];
  if (!html) {
    const body = [
      `Entrepot ${version}: a pull-through mirror and registry for container images.`,
      `Upstreams: ${upstreams.join(", ") || "none"}. API: /v2/  Health: /readyz  Metrics: /metrics`,
      ...sections.map(({ title, text, code }) => `\n# ${title}\n${text}\n\n${code}`),
    ].join("\n");
    return { type: "text/plain; charset=utf-8", body: `${body}\n` };
  }
  const body = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Entrepot</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem;color:#1c2733;background:#fbfbf9}
pre{background:#eef0f2;padding:1rem;overflow-x:auto;border-radius:6px}h1{margin-bottom:0}@media(prefers-color-scheme:dark){body{color:#dde3ea;background:#14181d}pre{background:#1f262e}a{color:#8ab8ff}}</style>
<h1>Entrepot</h1><p>A pull-through mirror and registry for container images. Version ${escapeHtml(version)}.</p>
<p>Upstreams: ${escapeHtml(upstreams.join(", ") || "none")}. API: <a href="/v2/">/v2/</a> · Health: <a href="/readyz">/readyz</a> · Metrics: <a href="/metrics">/metrics</a></p>
${sections.map(({ title, text, code }) => `<h2>${escapeHtml(title)}</h2><p>${escapeHtml(text)}</p><pre>${escapeHtml(code)}</pre>`).join("\n")}
</html>
`;
  return { type: "text/html; charset=utf-8", body };
}

function escapeHtml(text: string): string {
  return text.replaceAll(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
