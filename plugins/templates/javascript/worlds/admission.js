// Lets nothing be created in a namespace. wit/ says what the input is; variants are { tag, val }, numbers are exact up to 2^53.

import { get as config } from "scaleup:policy/config@0.1.0";
export { metadata } from "./build/metadata.js";

export const admitter = {
    admit(input) {
        const namespace = JSON.parse(config()).namespace ?? "default";
        if (input.phase === "validate" && input.operation === "create" && input.namespace === namespace) {
            const causes = [{
                reason: "FieldValueForbidden",
                field: "metadata.namespace",
                message: `nothing may be created in ${namespace}`,
            }];
            return { verdict: { tag: "deny", val: { message: "use a namespace of your own", causes } }, warnings: [] };
        }
        return { verdict: { tag: "allow" }, warnings: [] };
    },
};
