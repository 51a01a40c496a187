//! What several kinds of the Gateway API share: references, route status, and the grant that lets references cross namespaces.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

data!(
    /// Names the object that a route attaches to, or that a policy's state is about.
    ParentReference "io.k8s.networking.gateway.v1.ParentReference"
    requires {
        /// Name of the parent.
        name: String,
    }
    {
        /// API group of the parent; `gateway.networking.k8s.io` if absent, empty for the core group (Service).
        group: Option<String>,
        /// Kind of the parent; `Gateway` if absent.
        kind: Option<String>,
        /// Namespace of the parent; the referring object's own if absent.
        namespace: Option<String>,
        /// Name of the Gateway's listener or the Service's port; all that fit if absent.
        section_name: Option<String>,
        /// Port number of the listeners that are meant; all that fit if absent.
        port: Option<i32>,
    }
);

data!(
    /// Where requests go, and which share of them.
    BackendRef "io.k8s.networking.gateway.v1.BackendRef"
    requires {
        /// Name of the backend.
        name: String,
    }
    {
        /// API group of the backend; empty (the default) is the core group.
        group: Option<String>,
        /// Kind of the backend; `Service` if absent.
        kind: Option<String>,
        /// Namespace of the backend; the route's own if absent. Another one must allow it by a ReferenceGrant.
        namespace: Option<String>,
        /// Port of the Service (not its target port). Required for a Service.
        port: Option<i32>,
        /// Share of the requests, in proportion to the sum of the weights of the rule's backends. 0 to 1000000, default 1; 0 gets none.
        weight: Option<i32>,
    }
);

data!(
    /// Names an object that gets requests, without a share.
    BackendObjectReference "io.k8s.networking.gateway.v1.BackendObjectReference"
    requires {
        /// Name of the backend.
        name: String,
    }
    {
        /// API group of the backend; empty (the default) is the core group.
        group: Option<String>,
        /// Kind of the backend; `Service` if absent.
        kind: Option<String>,
        /// Namespace of the backend; the route's own if absent. Another one must allow it by a ReferenceGrant.
        namespace: Option<String>,
        /// Port of the Service (not its target port). Required for a Service.
        port: Option<i32>,
    }
);

data!(
    /// Names a Secret, or an object that stands for one.
    SecretObjectReference "io.k8s.networking.gateway.v1.SecretObjectReference"
    requires {
        /// Name of the object.
        name: String,
    }
    {
        /// API group; empty (the default) is the core group.
        group: Option<String>,
        /// Kind; `Secret` if absent.
        kind: Option<String>,
        /// Namespace; the referring object's own if absent. Another one must allow it by a ReferenceGrant.
        namespace: Option<String>,
    }
);

data!(
    /// Names an object of the same namespace.
    LocalObjectReference "io.k8s.networking.gateway.v1.LocalObjectReference"
    requires {
        /// API group; empty is the core group.
        group: String,
        /// Kind.
        kind: String,
        /// Name.
        name: String,
    }
    {}
);

data!(
    /// Names an object with a controller's own parameters.
    ParametersReference "io.k8s.networking.gateway.v1.ParametersReference"
    requires {
        /// API group; empty is the core group.
        group: String,
        /// Kind.
        kind: String,
        /// Name.
        name: String,
    }
    {
        /// Namespace, if the object is in one.
        namespace: Option<String>,
    }
);

data!(
    /// Observed state of a route.
    RouteStatus "io.k8s.networking.gateway.v1.RouteStatus"
    requires {
        /// One entry for each parent and controller that knows the route. At most 32.
        parents: Vec<RouteParentStatus>,
    }
    {}
);

data!(
    /// State of a route at one parent.
    RouteParentStatus "io.k8s.networking.gateway.v1.RouteParentStatus"
    requires {
        /// The parent, as the route's spec names it.
        parent_ref: ParentReference,
        /// Who wrote this: the `controllerName` of the parent's GatewayClass.
        controller_name: String,
        /// `Accepted`, `ResolvedRefs`, `PartiallyInvalid`. 1 to 8.
        conditions: Vec<Condition>,
    }
    {}
);

data!(
    /// Observed state of a policy.
    PolicyStatus "io.k8s.networking.gateway.v1.PolicyStatus"
    requires {
        /// One entry for each Gateway (or other object) through which the policy takes effect. At most 16.
        ancestors: Vec<PolicyAncestorStatus>,
    }
    {}
);

data!(
    /// State of a policy at one ancestor.
    PolicyAncestorStatus "io.k8s.networking.gateway.v1.PolicyAncestorStatus"
    requires {
        /// The ancestor.
        ancestor_ref: ParentReference,
        /// Who wrote this.
        controller_name: String,
        /// `Accepted`, `ResolvedRefs`. 1 to 8.
        conditions: Vec<Condition>,
    }
    {}
);

data!(
    /// Specification of a ReferenceGrant: everything in `from` may refer to everything in `to`.
    ReferenceGrantSpec "io.k8s.networking.gateway.v1.ReferenceGrantSpec"
    requires {
        /// Who may refer. 1 to 16.
        from: Vec<ReferenceGrantFrom>,
        /// To what. 1 to 16.
        to: Vec<ReferenceGrantTo>,
    }
    {}
);

data!(
    /// Objects of one kind in one namespace.
    ReferenceGrantFrom "io.k8s.networking.gateway.v1.ReferenceGrantFrom"
    requires {
        /// API group; empty is the core group.
        group: String,
        /// Kind, e.g. `HTTPRoute`.
        kind: String,
        /// Namespace.
        namespace: String,
    }
    {}
);

data!(
    /// Objects of one kind in the grant's namespace.
    ReferenceGrantTo "io.k8s.networking.gateway.v1.ReferenceGrantTo"
    requires {
        /// API group; empty is the core group.
        group: String,
        /// Kind, e.g. `Service`.
        kind: String,
    }
    {
        /// Name; all objects of the kind if absent.
        name: Option<String>,
    }
);
