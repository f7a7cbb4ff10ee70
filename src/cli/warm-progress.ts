import type { Bytes, Milliseconds } from "../base/clock.ts";
import type { Digest } from "../oci/digest.ts";
import type { WarmEvent } from "../registry/warm.ts";
import { barText, bytesText, cut, Rate, timeText } from "./format.ts";

interface BlobProgress {
  sizeBytes: Bytes;
  receivedBytes: Bytes;
  here: boolean;
}

/** How far the warming of one image is. */
export class ImageProgress {
  readonly image: string;
  readonly #startedAtMs: Milliseconds;
  readonly #blobs = new Map<Digest, BlobProgress>();
  readonly #rate = new Rate();

  constructor(image: string, nowMs: Milliseconds) {
    this.image = image;
    this.#startedAtMs = nowMs;
  }

  get blobs(): number {
    return this.#blobs.size;
  }

  /** Of the blobs known so far: of an index with many platforms, there are more to come. */
  get totalBytes(): Bytes {
    return this.#sum(({ sizeBytes }) => sizeBytes);
  }

  apply(event: WarmEvent, nowMs: Milliseconds): void {
    if (event.type === "blob") {
      const { digest, sizeBytes, here } = event;
      const known = this.#blobs.get(digest);
      this.#blobs.set(digest, {
        sizeBytes,
        here: here || known?.here === true,
        receivedBytes: known?.receivedBytes ?? 0,
      });
    } else if (event.type === "progress") {
      for (const { digest, receivedBytes } of event.flights) {
        const blob = this.#blobs.get(digest);
        if (blob) blob.receivedBytes = receivedBytes;
      }
      // What was here before, and what comes faster than it can be watched, says nothing about the line.
      const watched = this.#sum(({ here, sizeBytes, receivedBytes }) =>
        here && receivedBytes > 0 ? sizeBytes : receivedBytes,
      );
      this.#rate.sample(watched, nowMs);
    }
  }

  /** Two lines at most: the name, and bar, share, bytes, rate and time left, as far as they fit. */
  block(title: string, width: number): string[] {
    const { totalBytes, haveBytes } = this;
    if (totalBytes === 0) return [cut(title, width), "asking upstream"];
    const { bytesPerSecond } = this.#rate;
    const percent = `${Math.floor((haveBytes / totalBytes) * 100)}%`.padStart(4);
    const bytes = `${bytesText(haveBytes)} of ${bytesText(totalBytes)}`;
    const rate = bytesPerSecond === undefined ? "" : `${bytesText(bytesPerSecond)}/s`;
    const left =
      bytesPerSecond === undefined ? "" : `${timeText(((totalBytes - haveBytes) * 1000) / bytesPerSecond)} left`;
    const facts = [[percent, bytes, rate, left], [percent, rate, left], [percent, left], [percent]]
      .map((some) => some.filter((fact) => fact !== "").join("  "))
      .find((text) => width - text.length > 8);
    const barWidth = Math.min(40, width - (facts ?? percent).length - 1);
    return [cut(title, width), `${barText(haveBytes / totalBytes, barWidth)} ${facts ?? percent}`];
  }

  line(): string {
    const { totalBytes, haveBytes } = this;
    const { bytesPerSecond } = this.#rate;
    if (totalBytes === 0) return `${this.image}: asking upstream`;
    const rate = bytesPerSecond === undefined ? "" : `, ${bytesText(bytesPerSecond)}/s`;
    return `${this.image}: ${bytesText(haveBytes)} of ${bytesText(totalBytes)}${rate}`;
  }

  summary(nowMs: Milliseconds): string {
    return `${this.image}: ${bytesText(this.totalBytes)} in ${this.blobs} blobs, ${timeText(nowMs - this.#startedAtMs)}`;
  }

  get haveBytes(): Bytes {
    return this.#sum(({ here, sizeBytes, receivedBytes }) => (here ? sizeBytes : Math.min(sizeBytes, receivedBytes)));
  }

  #sum(of: (blob: BlobProgress) => Bytes): Bytes {
    let sum = 0;
    for (const blob of this.#blobs.values()) sum += of(blob);
    return sum;
  }
}
