import { Range, SemVer } from "semver";
import type { Tag } from "./reference.ts";

/** As docker's tags write versions: with or without a `v`, missing parts are 0. Helm writes `_` for the `+` of a chart's version. */
const VERSION =
  /^v?(0|[1-9][0-9]{0,14})(?:\.(0|[1-9][0-9]{0,14}))?(?:\.(0|[1-9][0-9]{0,14}))?(-[0-9A-Za-z.-]+)?(?:_[0-9A-Za-z._-]+)?$/;

/** The version that a tag writes; undefined where it is none. What follows a `-` (`3.12-alpine`) reads as a prerelease. */
export function versionOf(tag: Tag): SemVer | undefined {
  const [found, major, minor = "0", patch = "0", prerelease = ""] = VERSION.exec(tag) ?? [];
  if (found === undefined) return undefined;
  try {
    return new SemVer(`${major}.${minor}.${patch}${prerelease}`);
  } catch {
    // 1.2.3-01 and the like.
    return undefined;
  }
}

/**
 * Prereleases (and what tags look the same, `3.12-alpine`) are in a range only if it names one anywhere, as in `>=2.0.0-0`.
 * @throws TypeError: not a range
 */
export function versionsIn(text: string): (tag: Tag) => boolean {
  const withPrereleases = /[0-9xX*]-[0-9A-Za-z]/.test(text);
  const range = new Range(text, { includePrerelease: withPrereleases });
  return (tag) => {
    const version = versionOf(tag);
    return version !== undefined && (withPrereleases || version.prerelease.length === 0) && range.test(version);
  };
}
