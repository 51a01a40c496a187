// Does what the built-in autoscaler proposes, but never goes down by more than half at once. wit/ says what the input is.

export { metadata } from "./build/metadata.js";

export const scaler = {
    scale(input) {
        const within = (replicas) => Math.max(input.min, Math.min(input.max, replicas));
        const half = Math.ceil(input.replicas / 2);
        if (input.proposed < half) return { replicas: within(half), reason: "going down by half at most" };
        return { replicas: within(input.proposed), reason: "as proposed" };
    },
};
