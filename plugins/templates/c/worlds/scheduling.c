// Spreads pods: the node with the largest share of free CPU is best. build/bindings/scheduling.h has the types, made from wit/.

#include <stdlib.h>

#include "scheduling.h"

void exports_scaleup_policy_placer_place(exports_scaleup_policy_placer_input_t *input,
                                         exports_scaleup_policy_placer_answer_t *answer) {
    // Lists and texts that go out are freed by the caller.
    answer->verdicts.len = input->nodes.len;
    answer->verdicts.ptr = malloc(input->nodes.len * sizeof(int32_t) + 1);
    answer->reasons.len = 1;
    answer->reasons.ptr = malloc(sizeof(scheduling_string_t));
    scheduling_string_dup(&answer->reasons.ptr[0], "the node has too little free CPU");
    for (size_t at = 0; at < input->nodes.len; at++) {
        const scaleup_policy_scheduling_types_node_t *node = &input->nodes.ptr[at];
        int64_t free_cpu = node->milli_cpu - node->milli_cpu_used - input->pod.milli_cpu;
        int fits = free_cpu >= 0 && node->milli_cpu > 0;
        answer->verdicts.ptr[at] = fits ? (int32_t)(free_cpu * 100 / node->milli_cpu) : -1;
    }
    exports_scaleup_policy_placer_input_free(input);
}
