import { RegistryError } from "../oci/errors.ts";
import type { Ledger, Removed } from "../store/catalog.ts";
import { NamespaceTaken, type HostedCatalog, type Place } from "../store/hosted-catalog.ts";
import { AllowanceExceeded } from "../store/namespaces.ts";
import type { Hosted } from "./names.ts";
import { refusal, type QuotaExceeded, type Quotas } from "./quota.ts";

export interface HostedPlaceDeps {
  hosted: HostedCatalog;
  quotas: Quotas;
  /** A push has made a namespace: from now on it is hosted. */
  host: (namespace: string) => Promise<void>;
  /** Keeps the count of what is cached: what is pushed is cached no more. */
  ledger: Ledger;
}

/** Where pushes go: the namespace that the first of them makes, and what it may hold. Every write of a push is made through here. */
export class HostedPlaces {
  readonly #deps: HostedPlaceDeps;

  constructor(deps: HostedPlaceDeps) {
    this.#deps = deps;
  }

  /** @throws RegistryError DENIED: sooner than after a large upload */
  checkClaims(located: Hosted): Promise<void> {
    return this.#deps.hosted.checkClaims(located).catch((error: unknown) => {
      throw error instanceof NamespaceTaken ? namespaceTaken(error) : error;
    });
  }

  /**
   * A write that makes the namespace of a first push a hosted one.
   * @param upload what ends with it
   * @param write what is to be done in one transaction @returns the cached content that it took over
   * @throws RegistryError DENIED where it can't be; QuotaExceeded
   */
  async write(
    located: Hosted,
    upload: string | symbol | undefined,
    write: (place: Place) => Promise<Removed | undefined>,
  ): Promise<void> {
    const { host, quotas, ledger } = this.#deps;
    const { repository, claims } = located;
    const allowance = quotas.allowance(repository, upload);
    try {
      const cached = await write({ ...located, ...(allowance ? { allowance } : {}) });
      if (claims) await host(claims.namespace);
      if (cached) ledger.removed([cached]);
    } catch (error) {
      if (error instanceof AllowanceExceeded) throw quotaExceeded(error);
      throw error instanceof NamespaceTaken ? namespaceTaken(error) : error;
    }
  }
}

function quotaExceeded({ allowance, usedBytes, addedBytes }: AllowanceExceeded): QuotaExceeded {
  const { namespace, maxBytes } = allowance;
  return refusal({ namespace, maxBytes, usedBytes, underWayBytes: 0 }, addedBytes);
}

function namespaceTaken({ namespace, rival }: NamespaceTaken): RegistryError {
  return new RegistryError(
    "DENIED",
    `the mirror holds ${rival}, so a push can't change what names under ${namespace} mean: list ${namespace} under hosted.namespaces if it is to be hosted here, or choose another`,
    { detail: { namespace, repository: rival } },
  );
}
