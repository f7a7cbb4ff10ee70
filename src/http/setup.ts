import { createHash } from "node:crypto";
import type Koa from "koa";
import type { Setup } from "../access/setup.ts";
import { stateOf } from "./exchange.ts";

const STYLE = `body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:3rem auto;padding:0 1rem;color:#1c2733;background:#fbfbf9}
label{display:block;margin-top:1rem}input{font:inherit;width:100%;box-sizing:border-box;padding:.4rem .5rem;border:1px solid #8a97a3;border-radius:6px;color:inherit;background:transparent}
button{font:inherit;margin-top:1.5rem;padding:.5rem 1.2rem;border:0;border-radius:6px;color:#fff;background:#1b5fbf}button:disabled{opacity:.6}
#told{margin-top:1rem;min-height:1.5em}@media(prefers-color-scheme:dark){body{color:#dde3ea;background:#14181d}}`;

const SCRIPT = `const token = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
const form = document.querySelector("form");
const told = document.getElementById("told");
const button = form.querySelector("button");
if (token === "") told.textContent = "Open the link from the daemon's log whole, with what follows the #.";
else form.hidden = false;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { name, password, again } = form.elements;
  if (password.value !== again.value) {
    told.textContent = "The two passwords differ.";
    return;
  }
  button.disabled = true;
  told.textContent = "";
  try {
    const answer = await fetch("/api/v1/setup", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token, name: name.value, password: password.value }),
    });
    if (answer.ok) {
      form.hidden = true;
      told.textContent = "Done. " + name.value + " is the administrator: log in with docker login " + location.host + ".";
    } else {
      const problem = await answer.json();
      told.textContent = problem.detail;
    }
  } catch (error) {
    told.textContent = "The daemon did not answer: " + error.message;
  }
  button.disabled = false;
});`;

const PAGE = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Set up Entrepot</title>
<style>${STYLE}</style>
<h1>Set up Entrepot</h1>
<p>Nobody can log in yet. Make the first administrator.</p>
<form hidden>
<label>Name <input name="name" required autofocus maxlength="64" pattern="[a-z0-9]+([._\\-][a-z0-9]+)*" title="a-z and 0-9, with single . _ - between them" autocomplete="username" autocapitalize="none" spellcheck="false"></label>
<label>Password <input name="password" type="password" required autocomplete="new-password"></label>
<label>The same again <input name="again" type="password" required autocomplete="new-password"></label>
<button>Make the administrator</button>
</form>
<p id="told" role="status"></p>
<noscript><p>This page needs JavaScript. Without it: <code>entrepot user add NAME</code> on the daemon's machine.</p></noscript>
<script type="module">${SCRIPT}</script>
</html>
`;

/** Nothing but what is in the page, and its one request. */
const POLICY = [
  "default-src 'none'",
  `script-src '${hashOf(SCRIPT)}'`,
  `style-src '${hashOf(STYLE)}'`,
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

/** The page that the one-time link leads to. Once there is nothing to set up, it is not found. */
export function setupRoutes({ setup }: { setup: Pick<Setup, "isOffered"> }): Koa.Middleware {
  return async (ctx, next) => {
    const reads = ctx.method === "GET" || ctx.method === "HEAD";
    if (!reads || (ctx.req.url ?? "").split("?", 1)[0] !== "/setup" || !setup.isOffered) {
      await next();
      return;
    }
    stateOf(ctx).note({ handler: "setup" });
    ctx.set({
      "content-security-policy": POLICY,
      "cache-control": "no-store",
      "referrer-policy": "no-referrer",
      "x-content-type-options": "nosniff",
      "x-frame-options": "DENY",
    });
    ctx.type = "text/html; charset=utf-8";
    ctx.body = PAGE;
  };
}

function hashOf(text: string): string {
  return `sha256-${createHash("sha256").update(text).digest("base64")}`;
}
