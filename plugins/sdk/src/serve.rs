//! What [`crate::export!`] puts between the host and a policy: configuration and golden examples as values. Not for plugins to call.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

pub use crate::bindings::policy::scaleup::policy::metadata_types::Example;
use crate::{Level, host, log};

/// The configuration. One that does not fit is logged and traps: the schema should have refused it.
pub fn config<C: DeserializeOwned>() -> C {
    std::panic::set_hook(Box::new(|info| log(Level::Error, &info.to_string())));
    match serde_json::from_str(&host::config()) {
        Ok(config) => config,
        Err(error) => panic!("the configuration cannot be read (is the schema complete?): {error}"),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden<'a> {
    name: String,
    #[serde(borrow, default)]
    config: Option<&'a RawValue>,
    #[serde(borrow)]
    input: &'a RawValue,
    #[serde(borrow)]
    expected: &'a RawValue,
}

/// The golden examples in a JSON array. A text that is none traps: the plugin is never loaded then.
pub fn examples(text: &str) -> Vec<Example> {
    std::panic::set_hook(Box::new(|info| log(Level::Error, &info.to_string())));
    let golden: Vec<Golden> = match serde_json::from_str(text) {
        Ok(golden) => golden,
        Err(error) => panic!("the golden examples cannot be read: {error}"),
    };
    let example = |golden: Golden| Example {
        name: golden.name,
        config: golden.config.map_or_else(|| "{}".to_owned(), |config| config.get().to_owned()),
        input: golden.input.get().to_owned(),
        expected: golden.expected.get().to_owned(),
    };
    golden.into_iter().map(example).collect()
}
