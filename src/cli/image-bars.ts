import type { Bytes } from "../base/clock.ts";
import { barText, bytesText, countText } from "./format.ts";

/** How far the copy of one image is. */
export interface ImageShare {
  name: string;
  doneBytes: Bytes;
  totalBytes: Bytes;
}

const MOST_BARS = 12;
const LEAST_NAME = 20;
const AMOUNT_WIDTH = "1023 KiB of 1023 KiB".length;
/** What stands behind a name, the roomiest first: a bar of so many characters, the share, and the amount. */
const LAYOUTS = [
  { bar: 30, amount: true },
  { bar: 20, amount: true },
  { bar: 10, amount: true },
];
const NARROWEST = { bar: 10, amount: false };

/**
 * A line for each image, in columns: its name, a bar, its share, and its bytes where they fit.
 * @param width in characters, which no line exceeds
 * @param height in lines, at most
 */
export function imageBars(images: readonly ImageShare[], width: number, height: number): string[] {
  const most = Math.max(1, Math.min(MOST_BARS, height));
  const shown = images.slice(0, images.length > most ? Math.max(1, most - 1) : most);
  const longest = Math.max(0, ...shown.map(({ name }) => name.length));
  const roomFor = ({ bar, amount }: typeof NARROWEST): number =>
    width - (2 + bar + 5 + (amount ? 2 + AMOUNT_WIDTH : 0));
  const layout =
    LAYOUTS.find((one) => roomFor(one) >= longest) ??
    LAYOUTS.findLast((one) => roomFor(one) >= LEAST_NAME) ??
    NARROWEST;
  const nameWidth = Math.max(1, Math.min(longest, roomFor(layout)));
  const lines = shown.map(({ name, doneBytes, totalBytes }) => {
    const share = totalBytes === 0 ? 0 : Math.min(1, doneBytes / totalBytes);
    const percent = `${Math.floor(share * 100)}%`.padStart(5);
    const amount = layout.amount ? `  ${bytesText(doneBytes)} of ${bytesText(totalBytes)}` : "";
    return `${cutWithin(name, nameWidth).padEnd(nameWidth)}  ${barText(share, layout.bar)}${percent}${amount}`;
  });
  const more = images.length - shown.length;
  return more > 0 && most > 1 ? [...lines, `and ${countText(more, "other image")}`] : lines;
}

/** The text within a number of characters: the registry at its begin and the tag at its end say the most. */
function cutWithin(text: string, width: number): string {
  if (text.length <= width) return text;
  const head = Math.floor((width - 1) / 3);
  return `${text.slice(0, head)}…${text.slice(text.length - (width - 1 - head))}`;
}
