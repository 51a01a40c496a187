//! What wit-bindgen makes of `wit/`: what all worlds have in `policy`, and the decision of each world in a module of its own. A component exports
//! both, which together are its world.

/// Imports of every world, and the export that describes a component.
pub mod policy {
    wit_bindgen::generate!({
        path: "wit",
        world: "policy",
        pub_export_macro: true,
        export_macro_name: "__export_policy",
        generate_all,
    });
}

macro_rules! world {
    ($name:ident, $export:literal, $wit:literal) => {
        pub mod $name {
            wit_bindgen::generate!({
                path: "wit",
                inline: $wit,
                pub_export_macro: true,
                export_macro_name: $export,
                additional_derives: [PartialEq],
                generate_all,
            });
        }
    };
}

world!(
    admission,
    "__export_admission",
    "package scaleup:sdk; world only-admission { export scaleup:policy/admitter@0.1.0; }"
);
world!(pricing, "__export_pricing", "package scaleup:sdk; world only-pricing { export scaleup:policy/pricer@0.1.0; }");
world!(
    routing,
    "__export_routing",
    "package scaleup:sdk; world only-routing { import scaleup:policy/topology@0.1.0; export scaleup:policy/router@0.1.0; }"
);
world!(scaling, "__export_scaling", "package scaleup:sdk; world only-scaling { export scaleup:policy/scaler@0.1.0; }");
world!(
    scheduling,
    "__export_scheduling",
    "package scaleup:sdk; world only-scheduling { export scaleup:policy/placer@0.1.0; }"
);
