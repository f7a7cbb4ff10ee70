import type { IncomingMessage } from "node:http";
import type { Accounts } from "../access/accounts.ts";
import type { Authenticator } from "../access/authenticate.ts";
import { ANONYMOUS, EVERYBODY, type Caller } from "../access/principal.ts";
import { listensHere, type Config } from "../config/schema.ts";
import type { Requester } from "../events/event.ts";
import { RegistryError } from "../oci/errors.ts";
import { isForwarded, isOnThisMachine } from "./client-address.ts";
import { strangerText } from "./own-host.ts";
import { certificateNameOf } from "./tls.ts";

export interface CallersDeps {
  authenticator: Authenticator;
  accounts: Accounts;
  listen: string;
  /** Read whenever it is needed: it can be reloaded. */
  access: () => Config["access"];
  /** Whether a Host header is a name of this server. */
  isOwnHost: (host: string | undefined) => boolean;
}

/** Tells who sends a request: everybody where access is open, else whoever its credentials name. */
export class Callers {
  readonly #deps: CallersDeps;
  readonly #listensHere: boolean;

  constructor(deps: CallersDeps) {
    this.#deps = deps;
    this.#listensHere = listensHere(deps.listen);
  }

  /** Whether whoever is on this machine may do everything, as nobody can log in yet. */
  get openHere(): boolean {
    const { access, accounts } = this.#deps;
    const { open, htpasswd } = access();
    if (open !== undefined) return open !== false;
    return this.#listensHere && htpasswd === undefined && !accounts.hasLogins;
  }

  /**
   * Synchronous for whom it remembers, which is the way of a pull.
   * @throws RegistryError UNAUTHORIZED for credentials that are not good, TOOMANYREQUESTS after too many of them; DENIED to a stranger's
   * page where access is open
   */
  of(request: IncomingMessage, by: Requester): Caller | Promise<Caller> {
    const { authorization, host } = request.headers;
    if (this.openHere && this.#isMeant(request, by)) {
      if (this.#isStrangersPage(request, by)) throw new RegistryError("DENIED", strangerText(host));
      return EVERYBODY;
    }
    const certificateName = certificateNameOf(request);
    if (authorization === undefined && certificateName === undefined) return ANONYMOUS;
    return this.#deps.authenticator.authenticate({ authorization, certificateName }, by);
  }

  /** Whether open access is about this one: unless the configuration says more, only about those on this machine. */
  #isMeant(request: IncomingMessage, { address }: Requester): boolean {
    if (this.#deps.access().open !== undefined) return true;
    // A proxy that was told nothing more than where to go, as nginx and others, adds nothing, but speaks the oldest version.
    if (request.httpVersion === "1.0") return false;
    return isOnThisMachine(address) && !isForwarded(request.headers);
  }

  /**
   * Whether a browser on this machine shows a page that has let its own name lead here. Every browser says which languages its reader
   * knows, whatever the page wants; docker and its like never do, and may call this machine as /etc/hosts has it.
   */
  #isStrangersPage({ headers }: IncomingMessage, { address }: Requester): boolean {
    if (headers["accept-language"] === undefined || this.#deps.isOwnHost(headers.host)) return false;
    // A Unix socket is out of a browser's reach.
    return address !== "" && isOnThisMachine(address);
  }
}
