// Chooses the endpoint with the fewest requests under way. build/bindings/routing.h has the types, made from wit/.

#include "routing.h"

void exports_scaleup_policy_router_route(exports_scaleup_policy_router_input_t *input,
                                         exports_scaleup_policy_router_decision_t *decision) {
    uint32_t least = UINT32_MAX;
    decision->tag = SCALEUP_POLICY_ROUTING_TYPES_DECISION_DEFAULT;
    for (size_t at = 0; at < input->endpoints.len; at++) {
        const scaleup_policy_routing_types_endpoint_t *endpoint = &input->endpoints.ptr[at];
        int usable = endpoint->health == SCALEUP_POLICY_ROUTING_TYPES_HEALTH_HEALTHY && !endpoint->tried;
        if (usable && endpoint->in_flight < least) {
            least = endpoint->in_flight;
            decision->tag = SCALEUP_POLICY_ROUTING_TYPES_DECISION_PICK;
            decision->val.pick = (uint32_t)at;
        }
    }
    // What comes in is ours to free; what goes out is freed by the caller.
    exports_scaleup_policy_router_input_free(input);
}
