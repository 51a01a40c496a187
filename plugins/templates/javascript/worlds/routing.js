// Chooses the endpoint with the fewest requests under way. wit/ says what the input is; variants are { tag, val }, numbers are exact up to 2^53.

import { get as config } from "scaleup:policy/config@0.1.0";
export { metadata } from "./build/metadata.js";

// An instance lives for many decisions: the configuration is parsed once.
let most;

export const router = {
    route(input) {
        most ??= JSON.parse(config()).maxInFlight ?? Infinity;
        let best = -1;
        input.endpoints.forEach((endpoint, position) => {
            const usable = endpoint.health === "healthy" && !endpoint.tried && endpoint.inFlight < most;
            if (usable && (best < 0 || endpoint.inFlight < input.endpoints[best].inFlight)) best = position;
        });
        return best < 0 ? { tag: "default" } : { tag: "pick", val: best };
    },
};
