import { configureGlobal } from "fast-check";

// Properties are tried with other inputs at each run. A gate judges every change by the same ones: PROPERTY_SEED=1.
const seed = process.env["PROPERTY_SEED"];
if (seed !== undefined) configureGlobal({ seed: Number(seed) });
