// Everything costs a thousandth for each unit. build/bindings/pricing.h has the types, made from wit/.

#include <stdlib.h>

#include "pricing.h"

// Units that cost 1, and billionths in 1.
#define UNITS 1000
#define NANOS 1000000000

void exports_scaleup_policy_pricer_price(exports_scaleup_policy_pricer_input_t *input,
                                         exports_scaleup_policy_pricer_answer_t *answer) {
    // Lists and texts that go out are freed by the caller.
    answer->charges.len = input->usage.len;
    answer->charges.ptr = malloc(input->usage.len * sizeof(scaleup_policy_pricing_types_charge_t) + 1);
    for (size_t at = 0; at < input->usage.len; at++) {
        const scaleup_policy_pricing_types_usage_t *usage = &input->usage.ptr[at];
        scaleup_policy_pricing_types_charge_t *charge = &answer->charges.ptr[at];
        charge->usage = (uint32_t)at;
        // The rest below one becomes billionths: exact to the last of them, and nothing can overflow.
        charge->amount.units = usage->quantity.units / UNITS;
        charge->amount.nanos = (int32_t)(usage->quantity.units % UNITS) * (NANOS / UNITS) + usage->quantity.nanos / UNITS;
        pricing_string_dup(&charge->description, "a thousandth for each unit");
    }
    exports_scaleup_policy_pricer_input_free(input);
}
