// Lets nothing be created in the namespace default. build/bindings/admission.h has the types, made from wit/.

#include <stdlib.h>
#include <string.h>

#include "admission.h"

void exports_scaleup_policy_admitter_admit(exports_scaleup_policy_admitter_input_t *input,
                                           exports_scaleup_policy_admitter_answer_t *answer) {
    static const char NAMESPACE[] = "default";
    int there = input->namespace_.len == strlen(NAMESPACE) && memcmp(input->namespace_.ptr, NAMESPACE, strlen(NAMESPACE)) == 0;
    memset(answer, 0, sizeof *answer);
    answer->verdict.tag = SCALEUP_POLICY_ADMISSION_TYPES_VERDICT_ALLOW;
    if (there && input->phase == SCALEUP_POLICY_ADMISSION_TYPES_PHASE_VALIDATE &&
        input->operation == SCALEUP_POLICY_ADMISSION_TYPES_OPERATION_CREATE) {
        scaleup_policy_admission_types_denial_t *denial = &answer->verdict.val.deny;
        scaleup_policy_admission_types_cause_t *cause = malloc(sizeof *cause);
        // Texts that go out are freed by the caller: they are copied.
        admission_string_dup(&cause->reason, "FieldValueForbidden");
        admission_string_dup(&cause->field, "metadata.namespace");
        admission_string_dup(&cause->message, "nothing may be created in default");
        admission_string_dup(&denial->message, "use a namespace of your own");
        denial->causes.ptr = cause;
        denial->causes.len = 1;
        answer->verdict.tag = SCALEUP_POLICY_ADMISSION_TYPES_VERDICT_DENY;
    }
    exports_scaleup_policy_admitter_input_free(input);
}
