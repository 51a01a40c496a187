//! Kinds that k8s-openapi does not have: the Gateway API's and our own, declared so that kube clients and the API server
//! treat them as its own.

use std::marker::PhantomData;

use k8s_openapi::Resource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

/// The `apiVersion` of a `T`: takes no room, serializes as the kind's and accepts nothing else.
#[derive(Clone, Copy, Debug)]
pub struct ApiVersion<T>(PhantomData<fn() -> T>);

/// The `kind` of a `T`, likewise.
#[derive(Clone, Copy, Debug)]
pub struct Kind<T>(PhantomData<fn() -> T>);

macro_rules! constant {
    ($name:ident, $value:ident) => {
        impl<T> Default for $name<T> {
            fn default() -> Self {
                Self(PhantomData)
            }
        }
        impl<T> PartialEq for $name<T> {
            fn eq(&self, _: &Self) -> bool {
                true
            }
        }
        impl<T: Resource> Serialize for $name<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(T::$value)
            }
        }
        impl<'de, T: Resource> Deserialize<'de> for $name<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                if text != T::$value {
                    return Err(D::Error::custom(format_args!("expected {:?}, got {text:?}", T::$value)));
                }
                Ok(Self::default())
            }
        }
        impl<T> JsonSchema for $name<T> {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                "string".into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string"})
            }
        }
    };
}
constant!(ApiVersion, API_VERSION);
constant!(Kind, KIND);

/// Declares a kind: `kind!(/// docs TrafficPolicy, "traffic.scaleup.dev", "v1", "trafficpolicies", Namespace, Spec, Status,
/// "dev.scaleup.traffic.v1.TrafficPolicy")`. The scope is `Namespace` or `Cluster`; `-` for the status is a kind without one; the last argument
/// is the schema's name.
#[macro_export]
macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $group:literal, $version:literal, $plural:literal, $scope:ident, $spec:ty, -, $schema:literal) => {
        $crate::kind!(@type [$(#[$doc])*] $name, $spec, $schema, {});
        $crate::kind!(@traits $name, $group, $version, $plural, $scope);
    };
    ($(#[$doc:meta])* $name:ident, $group:literal, $version:literal, $plural:literal, $scope:ident, $spec:ty, $status:ty, $schema:literal) => {
        $crate::kind!(@type [$(#[$doc])*] $name, $spec, $schema, {
            /// What is observed; written by the platform.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub status: Option<$status>,
        });
        $crate::kind!(@traits $name, $group, $version, $plural, $scope);
    };
    (@type [$(#[$doc:meta])*] $name:ident, $spec:ty, $schema:literal, {$($status:tt)*}) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, ::serde::Serialize, ::serde::Deserialize, ::schemars::JsonSchema)]
        #[serde(rename_all = "camelCase", default)]
        #[schemars(rename = $schema)]
        pub struct $name {
            /// APIVersion defines the versioned schema of this representation of an object.
            pub api_version: $crate::kind::ApiVersion<$name>,
            /// Kind is a string value representing the REST resource this object represents.
            pub kind: $crate::kind::Kind<$name>,
            /// Standard object's metadata.
            pub metadata: ::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// What is wanted.
            #[schemars(required)]
            pub spec: $spec,
            $($status)*
        }
    };
    (@traits $name:ident, $group:literal, $version:literal, $plural:literal, $scope:ident) => {
        impl ::k8s_openapi::Resource for $name {
            const API_VERSION: &'static str = concat!($group, "/", $version);
            const GROUP: &'static str = $group;
            const KIND: &'static str = stringify!($name);
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $crate::kind::scope::$scope;
        }
        impl ::k8s_openapi::ListableResource for $name {
            const LIST_KIND: &'static str = concat!(stringify!($name), "List");
        }
        impl ::k8s_openapi::Metadata for $name {
            type Ty = ::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }
    };
}

/// Scopes by the names that [`kind!`] takes.
pub mod scope {
    pub use k8s_openapi::{ClusterResourceScope as Cluster, NamespaceResourceScope as Namespace};
}

#[cfg(test)]
mod tests {
    use crate::traffic::TrafficPolicy;

    #[test]
    fn type_meta_is_written_and_checked() {
        let policy: TrafficPolicy = serde_json::from_str(r#"{"metadata": {"name": "a"}}"#).expect("a policy");
        let json = serde_json::to_value(&policy).expect("JSON");
        assert_eq!((&json["apiVersion"], &json["kind"]), (&"traffic.scaleup.dev/v1".into(), &"TrafficPolicy".into()));
        assert_eq!(serde_json::from_value::<TrafficPolicy>(json).expect("a policy"), policy);
        let other = serde_json::from_str::<TrafficPolicy>(r#"{"kind": "Pod"}"#).expect_err("another kind");
        assert!(other.to_string().contains("expected \"TrafficPolicy\", got \"Pod\""));
    }
}
