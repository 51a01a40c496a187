//! What the fields of our own kinds and of the Gateway API's are declared with.

/// Declares plain data of a group of ours or of the Gateway API: camelCase fields; those it `requires` are always written, the others when they say something.
macro_rules! data {
    ($(#[$doc:meta])* $name:ident $schema:literal
        $(requires { $($(#[$required_doc:meta])* $required:ident: $required_type:ty,)* })?
        { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, ::serde::Serialize, ::serde::Deserialize, ::schemars::JsonSchema)]
        #[serde(rename_all = "camelCase", default)]
        #[schemars(rename = $schema)]
        pub struct $name {
            $($($(#[$required_doc])* #[schemars(extend("x-required" = true))] pub $required: $required_type,)*)?
            $($(#[$field_doc])* #[serde(skip_serializing_if = "crate::data::is_empty")] pub $field: $type,)*
        }
    };
}

/// Whether a field is at its default and so not written.
pub(crate) fn is_empty<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
