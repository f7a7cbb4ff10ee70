/** What is refused below the API, which answers it with the problem of the same status. */
import { RegistryError } from "../oci/errors.ts";

/** The value is not what may be given. */
export function invalid(message: string): RegistryError {
  return new RegistryError("UNSUPPORTED", message, { status: 400 });
}

/** There is no such thing. */
export function missing(message: string): RegistryError {
  return new RegistryError("UNKNOWN", message, { status: 404 });
}

/** The state of things does not allow it. */
export function conflict(message: string): RegistryError {
  return new RegistryError("DENIED", message, { status: 409 });
}
