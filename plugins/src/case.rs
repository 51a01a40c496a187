//! An input of any world, with all that it refers to: golden examples, recorded decisions and benchmarks are made of these.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{World, admission, pricing, routing, scaling, scheduling};

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub enum Case {
    Routing(Box<routing::Input>, Arc<routing::Topology>),
    Admission(Box<admission::Input>),
    Scheduling(Box<scheduling::Input>),
    Scaling(Box<scaling::Input>),
    Pricing(Box<pricing::Input>),
}

fn read<T: DeserializeOwned>(input: &str) -> Result<Box<T>, String> {
    serde_json::from_str(input).map(Box::new).map_err(|error| error.to_string())
}

impl Case {
    /// From JSON as the WIT says; fields that are left out are zero, empty or absent.
    ///
    /// # Errors
    /// Why it cannot be read, or is no input of this world.
    pub fn read(world: World, input: &str) -> Result<Self, String> {
        Ok(match world {
            World::Routing => {
                let case = read::<routing::Case>(input)?;
                Self::Routing(Box::new(case.input), Arc::new(case.topology))
            }
            World::Admission => Self::Admission(read(input)?),
            World::Scheduling => {
                let input = read::<scheduling::Input>(input)?;
                input.check()?;
                Self::Scheduling(input)
            }
            World::Scaling => Self::Scaling(read(input)?),
            World::Pricing => Self::Pricing(read(input)?),
        })
    }

    /// As JSON: what [`Case::read`] reads.
    ///
    /// # Errors
    /// If it holds a number that JSON does not have.
    pub fn json(&self) -> Result<Value, serde_json::Error> {
        match self {
            Self::Routing(input, topology) => {
                let (input, topology) = (routing::Input::clone(input), routing::Topology::clone(topology));
                serde_json::to_value(routing::Case { input, topology })
            }
            Self::Admission(input) => serde_json::to_value(input),
            Self::Scheduling(input) => serde_json::to_value(input),
            Self::Scaling(input) => serde_json::to_value(input),
            Self::Pricing(input) => serde_json::to_value(input),
        }
    }

    /// Which decision it asks for.
    pub const fn world(&self) -> World {
        match self {
            Self::Routing(..) => World::Routing,
            Self::Admission(_) => World::Admission,
            Self::Scheduling(_) => World::Scheduling,
            Self::Scaling(_) => World::Scaling,
            Self::Pricing(_) => World::Pricing,
        }
    }

    /// About how much memory it takes, in bytes: what grows without bound is counted.
    pub(crate) fn bytes(&self) -> usize {
        /// What an entry of a list takes at least, with its allocation.
        const ENTRY: usize = 48;
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        ENTRY * 8
            + match self {
                Self::Routing(input, topology) => {
                    let header = |header: &routing::Header| ENTRY + header.name.len() + header.value.len();
                    let names = topology.backends.len() + topology.zones.len();
                    input.endpoints.len() * size_of::<routing::Endpoint>()
                        + input.request.headers.iter().map(header).sum::<usize>()
                        + input.request.path.len()
                        + names * ENTRY
                }
                Self::Admission(input) => {
                    let (labels, groups) = (input.namespace_labels.len(), input.user.groups.len());
                    text(&input.object) + text(&input.old_object) + (labels * 2 + groups) * ENTRY
                }
                Self::Scheduling(input) => {
                    let numbers = input.offered.len() + input.used.len() + input.labels.len();
                    input.nodes.len() * size_of::<scheduling::Node>() + (numbers + input.label_values.len() * 4) * 8
                }
                Self::Scaling(input) => (input.samples.len() + input.metrics.len()) * ENTRY,
                Self::Pricing(input) => input.usage.iter().map(|usage| (4 + usage.labels.len() * 2) * ENTRY).sum(),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        for world in World::ALL {
            let case = Case::read(world, "{}").unwrap();
            assert_eq!(case.world(), world);
            let text = case.json().unwrap().to_string();
            assert_eq!(Case::read(world, &text).as_ref(), Ok(&case), "{text}");
        }
        let case =
            Case::read(World::Routing, r#"{"topology": {"backends": ["a/b:80"]}, "endpoints": [{"latencyUs": 0.1}]}"#);
        let text = case.as_ref().unwrap().json().unwrap().to_string();
        assert_eq!(Case::read(World::Routing, &text), case);
        assert!(
            Case::read(World::Scheduling, r#"{"nodes": [{}], "resources": ["a"]}"#).is_err(),
            "tables that do not fit"
        );
    }

    #[test]
    fn large_inputs_count_as_large() {
        let bytes = |world, input: &str| Case::read(world, input).unwrap().bytes();
        let object = "x".repeat(100_000);
        assert!(bytes(World::Admission, &format!(r#"{{"object": "{object}"}}"#)) > 100_000);
        assert!(bytes(World::Admission, "{}") < 1000);
        let endpoints = vec!["{}"; 1024].join(",");
        assert!(bytes(World::Routing, &format!(r#"{{"endpoints": [{endpoints}]}}"#)) > 40_000);
    }
}
