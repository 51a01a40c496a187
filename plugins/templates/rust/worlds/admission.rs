//! Lets nothing be created in a namespace.

use scaleup_plugin_sdk::admission::{Admitter, Answer, Input, Operation, Phase, cause};
use serde::Deserialize;

#[derive(Deserialize)]
struct Config {
    /// Where nothing may be created.
    namespace: Option<String>,
}

struct Policy(Config);

impl Admitter for Policy {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self(config)
    }

    fn admit(&self, input: Input) -> Answer {
        let namespace = self.0.namespace.as_deref().unwrap_or("default");
        if input.phase == Phase::Validate && input.operation == Operation::Create && input.namespace == namespace {
            let message = format!("nothing may be created in {namespace}");
            let cause = cause("FieldValueForbidden", "metadata.namespace", message);
            return Answer::deny("use a namespace of your own", vec![cause]);
        }
        Answer::allow()
    }
}

scaleup_plugin_sdk::export! {
    admission: Policy,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
