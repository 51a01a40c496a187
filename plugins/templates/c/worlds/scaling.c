// Does what the built-in autoscaler proposes, but never goes down by more than half at once. build/bindings/scaling.h has the types, made from wit/.

#include "scaling.h"

void exports_scaleup_policy_scaler_scale(exports_scaleup_policy_scaler_input_t *input,
                                         exports_scaleup_policy_scaler_answer_t *answer) {
    uint32_t half = input->replicas / 2 + input->replicas % 2;
    int slowed = input->proposed < half;
    uint32_t wanted = slowed ? half : input->proposed;
    if (wanted > input->max) wanted = input->max;
    if (wanted < input->min) wanted = input->min;
    answer->replicas.is_some = true;
    answer->replicas.val = wanted;
    // Texts that go out are freed by the caller: they are copied.
    scaling_string_dup(&answer->reason, slowed ? "going down by half at most" : "as proposed");
    exports_scaleup_policy_scaler_input_free(input);
}
