//! The rows of the default policy. A table: read `plugin/pkg/auth/authorizer/rbac/bootstrappolicy` beside it.
//!
//! Upstream binds each controller's service account to its own role; our controllers run as one user, so every
//! `system:controller:*` row is bound to that user instead. Rules for kinds that are not served yet are there already,
//! because users' expectations of `view`, `edit` and `admin` do not depend on what is served.

/// The user that all controllers run as.
pub(super) const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

/// One rule. Verbs are written as words of one string.
pub(super) struct Row {
    pub verbs: &'static [&'static str],
    pub groups: &'static [&'static str],
    pub resources: &'static [&'static str],
    pub names: &'static [&'static str],
    pub urls: &'static [&'static str],
}

/// One role.
pub(super) struct Role {
    pub name: &'static str,
    /// Suffixes of `rbac.authorization.k8s.io/` labels: into which roles this one is aggregated.
    pub labels: &'static [&'static str],
    /// Suffix of the label whose roles are aggregated into this one.
    pub aggregate: Option<&'static str>,
    pub rules: &'static [Row],
}

type Words = &'static [&'static str];

const fn on(verbs: Words, groups: Words, resources: Words) -> Row {
    Row { verbs, groups, resources, names: &[], urls: &[] }
}
const fn named(verbs: Words, groups: Words, resources: Words, names: Words) -> Row {
    Row { verbs, groups, resources, names, urls: &[] }
}
const fn paths(verbs: Words, urls: Words) -> Row {
    Row { verbs, groups: &[], resources: &[], names: &[], urls }
}
const fn role(name: &'static str, rules: &'static [Row]) -> Role {
    Role { name, labels: &[], aggregate: None, rules }
}
const fn part(name: &'static str, label: &'static [&'static str], rules: &'static [Row]) -> Role {
    Role { name, labels: label, aggregate: None, rules }
}
const fn whole(name: &'static str, labels: &'static [&'static str], aggregate: &'static str) -> Role {
    Role { name, labels, aggregate: Some(aggregate), rules: &[] }
}

const READ: Words = &["get list watch"];
const WRITE: Words = &["create update patch delete deletecollection"];
const READ_WRITE: Words = &["get list watch create update patch delete deletecollection"];
const LIST_WATCH: Words = &["list watch"];
const UPDATE: Words = &["update"];
const CREATE: Words = &["create"];
const STAR: Words = &["*"];

const CORE: Words = &[""];
const APPS: Words = &["apps"];
const AUTHENTICATION: Words = &["authentication.k8s.io"];
const AUTHORIZATION: Words = &["authorization.k8s.io"];
const AUTOSCALING: Words = &["autoscaling"];
const BATCH: Words = &["batch"];
const COORDINATION: Words = &["coordination.k8s.io"];
const DISCOVERY: Words = &["discovery.k8s.io"];
const NETWORKING: Words = &["networking.k8s.io"];
const GATEWAY: Words = &["gateway.networking.k8s.io"];
const TRAFFIC: Words = &["traffic.scaleup.dev"];
const PLUGINS: Words = &["policy.scaleup.dev"];
/// Kinds of the Gateway API that users write.
const GATEWAY_KINDS: Words = &[
    "backendtlspolicies",
    "gateways",
    "grpcroutes",
    "httproutes",
    "referencegrants",
    "tcproutes",
    "tlsroutes",
    "udproutes",
];
/// Their states, and that of the kind that administrators write.
const GATEWAY_STATUSES: Words = &[
    "backendtlspolicies/status",
    "gatewayclasses/status",
    "gateways/status",
    "grpcroutes/status",
    "httproutes/status",
    "tcproutes/status",
    "tlsroutes/status",
    "udproutes/status",
];
const POLICY: Words = &["policy"];
const RBAC: Words = &["rbac.authorization.k8s.io"];

/// Every component may write events.
const EVENTS: Row = on(&["create update patch"], &["", "events.k8s.io"], &["events"]);

/// Cluster roles.
pub(super) const CLUSTER_ROLES: &[Role] = &[
    role("cluster-admin", &[on(STAR, STAR, STAR), paths(STAR, STAR)]),
    whole("admin", &[], "aggregate-to-admin"),
    whole("edit", &["aggregate-to-admin"], "aggregate-to-edit"),
    whole("view", &["aggregate-to-edit"], "aggregate-to-view"),
    part(
        "system:aggregate-to-admin",
        &["aggregate-to-admin"],
        &[on(CREATE, AUTHORIZATION, &["localsubjectaccessreviews"]), on(READ_WRITE, RBAC, &["roles", "rolebindings"])],
    ),
    part(
        "system:aggregate-to-edit",
        &["aggregate-to-edit"],
        &[
            on(
                READ,
                CORE,
                &["pods/attach", "pods/proxy", "pods/exec", "pods/portforward", "secrets", "services/proxy"],
            ),
            on(&["impersonate"], CORE, &["serviceaccounts"]),
            on(WRITE, CORE, &["pods", "pods/attach", "pods/proxy", "pods/exec", "pods/portforward"]),
            on(CREATE, CORE, &["pods/eviction"]),
            on(
                WRITE,
                CORE,
                &[
                    "replicationcontrollers",
                    "replicationcontrollers/scale",
                    "serviceaccounts",
                    "services",
                    "services/proxy",
                    "persistentvolumeclaims",
                    "configmaps",
                    "secrets",
                    "events",
                ],
            ),
            on(CREATE, CORE, &["serviceaccounts/token"]),
            on(
                WRITE,
                APPS,
                &[
                    "statefulsets",
                    "statefulsets/scale",
                    "daemonsets",
                    "deployments",
                    "deployments/scale",
                    "deployments/rollback",
                    "replicasets",
                    "replicasets/scale",
                ],
            ),
            on(WRITE, AUTOSCALING, &["horizontalpodautoscalers"]),
            on(WRITE, BATCH, &["jobs", "cronjobs"]),
            on(WRITE, POLICY, &["poddisruptionbudgets"]),
            on(WRITE, NETWORKING, &["networkpolicies", "ingresses"]),
            on(WRITE, GATEWAY, GATEWAY_KINDS),
            on(WRITE, TRAFFIC, &["trafficpolicies"]),
            on(WRITE, PLUGINS, &["wasmmodules", "wasmplugins"]),
            on(&["get update"], PLUGINS, &["wasmmodules/content"]),
            on(READ_WRITE, COORDINATION, &["leases"]),
        ],
    ),
    part(
        "system:aggregate-to-view",
        &["aggregate-to-view"],
        &[
            on(
                READ,
                CORE,
                &[
                    "pods",
                    "replicationcontrollers",
                    "replicationcontrollers/scale",
                    "serviceaccounts",
                    "services",
                    "services/status",
                    "endpoints",
                    "persistentvolumeclaims",
                    "persistentvolumeclaims/status",
                    "configmaps",
                ],
            ),
            on(
                READ,
                CORE,
                &[
                    "limitranges",
                    "resourcequotas",
                    "bindings",
                    "events",
                    "pods/status",
                    "resourcequotas/status",
                    "namespaces/status",
                    "replicationcontrollers/status",
                    "pods/log",
                ],
            ),
            // In a namespace this is that namespace itself.
            on(READ, CORE, &["namespaces"]),
            on(READ, DISCOVERY, &["endpointslices"]),
            on(
                READ,
                APPS,
                &[
                    "controllerrevisions",
                    "statefulsets",
                    "statefulsets/status",
                    "statefulsets/scale",
                    "daemonsets",
                    "daemonsets/status",
                    "deployments",
                    "deployments/status",
                    "deployments/scale",
                    "replicasets",
                    "replicasets/status",
                    "replicasets/scale",
                ],
            ),
            on(READ, AUTOSCALING, &["horizontalpodautoscalers", "horizontalpodautoscalers/status"]),
            on(READ, BATCH, &["jobs", "cronjobs", "cronjobs/status", "jobs/status"]),
            on(READ, POLICY, &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
            on(READ, NETWORKING, &["networkpolicies", "ingresses", "ingresses/status"]),
            on(READ, GATEWAY, GATEWAY_KINDS),
            on(READ, GATEWAY, GATEWAY_STATUSES),
            on(READ, TRAFFIC, &["trafficpolicies", "trafficpolicies/status"]),
            on(READ, PLUGINS, &["wasmmodules", "wasmmodules/status", "wasmplugins", "wasmplugins/status"]),
            // In effect where `view` is bound in the whole cluster.
            on(READ, GATEWAY, &["gatewayclasses"]),
            on(READ, NETWORKING, &["ingressclasses"]),
            on(READ, PLUGINS, &["clusterwasmplugins"]),
        ],
    ),
    role(
        "system:basic-user",
        &[
            on(CREATE, AUTHORIZATION, &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
            on(CREATE, AUTHENTICATION, &["selfsubjectreviews"]),
        ],
    ),
    role(
        "system:discovery",
        &[paths(
            &["get"],
            &[
                "/livez",
                "/readyz",
                "/healthz",
                "/version",
                "/version/",
                "/openapi",
                "/openapi/*",
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
            ],
        )],
    ),
    role("system:public-info-viewer", &[paths(&["get"], &["/livez", "/readyz", "/healthz", "/version", "/version/"])]),
    role(
        "system:monitoring",
        &[paths(
            &["get"],
            &["/metrics", "/metrics/slis", "/livez", "/readyz", "/healthz", "/livez/*", "/readyz/*", "/healthz/*"],
        )],
    ),
    role(
        "system:service-account-issuer-discovery",
        &[paths(
            &["get"],
            &[
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            ],
        )],
    ),
    role(
        "system:auth-delegator",
        &[on(CREATE, AUTHENTICATION, &["tokenreviews"]), on(CREATE, AUTHORIZATION, &["subjectaccessreviews"])],
    ),
    role(
        "system:kubelet-api-admin",
        &[
            on(READ, CORE, &["nodes"]),
            on(&["proxy"], CORE, &["nodes"]),
            on(
                STAR,
                CORE,
                &[
                    "nodes/proxy",
                    "nodes/metrics",
                    "nodes/stats",
                    "nodes/log",
                    "nodes/healthz",
                    "nodes/configz",
                    "nodes/pods",
                ],
            ),
        ],
    ),
    // Given by the node authorizer to every node for what it does not subdivide; not bound to anybody.
    role(
        "system:node",
        &[
            on(CREATE, AUTHENTICATION, &["tokenreviews"]),
            on(CREATE, AUTHORIZATION, &["subjectaccessreviews", "localsubjectaccessreviews"]),
            on(READ, CORE, &["services"]),
            on(READ, DISCOVERY, &["endpointslices"]),
            on(&["create get list watch"], CORE, &["nodes"]),
            on(&["update patch"], CORE, &["nodes/status"]),
            on(&["update patch"], CORE, &["nodes"]),
            EVENTS,
            on(READ, CORE, &["pods"]),
            on(&["create delete"], CORE, &["pods"]),
            on(&["update patch"], CORE, &["pods/status"]),
            on(CREATE, CORE, &["pods/eviction"]),
            on(READ, CORE, &["secrets", "configmaps"]),
            on(&["get"], CORE, &["serviceaccounts"]),
            on(CREATE, CORE, &["serviceaccounts/token"]),
            on(&["get create update patch delete"], COORDINATION, &["leases"]),
            on(READ, &["node.k8s.io"], &["runtimeclasses"]),
        ],
    ),
    role(
        "system:node-proxier",
        &[
            on(LIST_WATCH, CORE, &["services", "endpoints"]),
            on(READ, CORE, &["nodes"]),
            EVENTS,
            on(LIST_WATCH, DISCOVERY, &["endpointslices"]),
        ],
    ),
    // Ours: the load balancer, service proxy and cluster DNS.
    role(
        "system:scaleup-lb",
        &[
            on(READ, CORE, &["services", "nodes", "pods", "namespaces"]),
            on(READ, DISCOVERY, &["endpointslices"]),
            on(&["update patch"], CORE, &["services/status"]),
            on(READ, NETWORKING, &["ingresses", "ingressclasses"]),
            on(&["update patch"], NETWORKING, &["ingresses/status"]),
            on(READ, GATEWAY, GATEWAY_KINDS),
            on(READ, GATEWAY, &["gatewayclasses"]),
            on(&["update patch"], GATEWAY, GATEWAY_STATUSES),
            on(READ, TRAFFIC, &["trafficpolicies"]),
            on(&["update patch"], TRAFFIC, &["trafficpolicies/status"]),
            // Authorities. Certificates are in Secrets, of which its authorizer lets it watch those of type kubernetes.io/tls.
            on(READ, CORE, &["configmaps"]),
            EVENTS,
        ],
    ),
    // Ours: whoever decides by plugins loads them, and says so in their status.
    role(
        "system:scaleup-plugin-loader",
        &[
            on(READ, PLUGINS, &["clusterwasmplugins", "wasmplugins"]),
            on(&["patch"], PLUGINS, &["clusterwasmplugins/status", "wasmplugins/status"]),
            on(&["get"], PLUGINS, &["wasmmodules/content"]),
            paths(&["post"], &["/plugins/records"]),
        ],
    ),
    role(
        "system:kube-scheduler",
        &[
            EVENTS,
            on(CREATE, COORDINATION, &["leases"]),
            named(&["get update"], COORDINATION, &["leases"], &["kube-scheduler"]),
            on(READ, CORE, &["nodes"]),
            on(&["get list watch delete"], CORE, &["pods"]),
            on(CREATE, CORE, &["bindings", "pods/binding"]),
            on(&["patch update"], CORE, &["pods/status"]),
            on(READ, CORE, &["replicationcontrollers", "services"]),
            on(READ, APPS, &["replicasets", "statefulsets"]),
            on(READ, POLICY, &["poddisruptionbudgets"]),
            on(READ, CORE, &["persistentvolumeclaims", "persistentvolumes"]),
            on(READ, CORE, &["namespaces"]),
            on(READ, &["scheduling.k8s.io"], &["priorityclasses"]),
            on(READ, &["storage.k8s.io"], &["csinodes", "csidrivers", "csistoragecapacities", "storageclasses"]),
            on(CREATE, AUTHENTICATION, &["tokenreviews"]),
            on(CREATE, AUTHORIZATION, &["subjectaccessreviews"]),
        ],
    ),
    role(
        CONTROLLER_MANAGER,
        &[
            EVENTS,
            on(CREATE, COORDINATION, &["leases"]),
            named(&["get update"], COORDINATION, &["leases"], &["kube-controller-manager"]),
            on(&["get create update delete"], CORE, &["secrets"]),
            on(&["get create update"], CORE, &["serviceaccounts"]),
            on(CREATE, CORE, &["serviceaccounts/token"]),
            on(CREATE, AUTHENTICATION, &["tokenreviews"]),
            on(CREATE, AUTHORIZATION, &["subjectaccessreviews"]),
            // Shared reflectors, and the garbage collector's over every kind there is.
            on(LIST_WATCH, STAR, STAR),
        ],
    ),
    role(
        "system:controller:deployment-controller",
        &[
            on(&["get list watch update patch"], APPS, &["deployments"]),
            on(&["update patch"], APPS, &["deployments/status"]),
            // For owner references that block the owner's deletion.
            on(UPDATE, APPS, &["deployments/finalizers"]),
            on(&["get list watch create update patch delete"], APPS, &["replicasets"]),
            on(&["get list watch update"], CORE, &["pods"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:replicaset-controller",
        &[
            on(&["get list watch update patch"], APPS, &["replicasets"]),
            on(&["update patch"], APPS, &["replicasets/status"]),
            on(UPDATE, APPS, &["replicasets/finalizers"]),
            on(&["get list watch patch create delete"], CORE, &["pods"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:endpoint-controller",
        &[
            on(READ, CORE, &["services", "pods"]),
            on(&["get list create update patch delete"], CORE, &["endpoints"]),
            on(CREATE, CORE, &["endpoints/restricted"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:endpointslice-controller",
        &[
            on(READ, CORE, &["services", "pods", "nodes"]),
            on(UPDATE, CORE, &["services/finalizers"]),
            on(&["get list watch create update patch delete"], DISCOVERY, &["endpointslices"]),
            on(CREATE, DISCOVERY, &["endpointslices/restricted"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:namespace-controller",
        &[
            on(&["get list watch delete"], CORE, &["namespaces"]),
            on(&["update patch"], CORE, &["namespaces/finalize", "namespaces/status"]),
            on(&["get list delete deletecollection"], STAR, STAR),
        ],
    ),
    role(
        "system:controller:generic-garbage-collector",
        &[on(&["get list watch patch update delete"], STAR, STAR), EVENTS],
    ),
    role(
        "system:controller:node-controller",
        &[
            on(&["get list watch update delete patch"], CORE, &["nodes"]),
            on(&["patch update"], CORE, &["nodes/status"]),
            on(&["get list watch delete"], CORE, &["pods"]),
            on(&["patch update"], CORE, &["pods/status"]),
            on(CREATE, CORE, &["pods/eviction"]),
            on(READ, COORDINATION, &["leases"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:pod-garbage-collector",
        &[
            on(&["list watch delete"], CORE, &["pods"]),
            on(&["get list"], CORE, &["nodes"]),
            on(&["patch"], CORE, &["pods/status"]),
        ],
    ),
    role(
        "system:controller:plugin-controller",
        &[
            on(READ, PLUGINS, &["clusterwasmplugins", "wasmmodules", "wasmplugins"]),
            on(&["patch update"], PLUGINS, &["clusterwasmplugins/status", "wasmplugins/status"]),
            on(&["create delete"], PLUGINS, &["wasmmodules"]),
            on(&["get update"], PLUGINS, &["wasmmodules/content"]),
            // Where modules, tokens and passwords of registries are.
            on(READ, CORE, &["configmaps", "secrets"]),
            EVENTS,
        ],
    ),
    role("system:controller:service-account-controller", &[on(CREATE, CORE, &["serviceaccounts"]), EVENTS]),
    role(
        "system:controller:root-ca-cert-publisher",
        &[on(&["get create update patch"], CORE, &["configmaps"]), EVENTS],
    ),
];

/// Roles in `kube-system`: leader election, and the view of platform components.
pub(super) const ROLES: &[Role] = &[
    // Ours: components keep EndpointSlices that say where they are and since when.
    role("system:scaleup-component", &[on(&["get list create update patch"], DISCOVERY, &["endpointslices"])]),
    role(
        "extension-apiserver-authentication-reader",
        &[named(READ, CORE, &["configmaps"], &["extension-apiserver-authentication"])],
    ),
    role(
        "system::leader-locking-kube-controller-manager",
        &[
            on(&["watch"], CORE, &["configmaps"]),
            named(&["get update"], CORE, &["configmaps"], &["kube-controller-manager"]),
        ],
    ),
    role(
        "system::leader-locking-kube-scheduler",
        &[on(&["watch"], CORE, &["configmaps"]), named(&["get update"], CORE, &["configmaps"], &["kube-scheduler"])],
    ),
];

type Subjects = &'static [(&'static str, &'static str)];

/// Bindings of cluster roles, named like their role; those of `system:controller:*` follow from [`CLUSTER_ROLES`].
pub(super) const CLUSTER_BINDINGS: &[(&str, Subjects)] = &[
    ("cluster-admin", &[("Group", "system:masters")]),
    ("system:monitoring", &[("Group", "system:monitoring")]),
    ("system:discovery", &[("Group", "system:authenticated")]),
    ("system:basic-user", &[("Group", "system:authenticated")]),
    ("system:public-info-viewer", &[("Group", "system:authenticated"), ("Group", "system:unauthenticated")]),
    ("system:service-account-issuer-discovery", &[("Group", "system:serviceaccounts")]),
    ("system:node-proxier", &[("User", "system:kube-proxy")]),
    ("system:scaleup-lb", &[("User", "system:kube-proxy")]),
    ("system:scaleup-plugin-loader", &[("User", "system:kube-proxy"), ("User", "system:kube-scheduler")]),
    ("system:kube-scheduler", &[("User", "system:kube-scheduler")]),
    (CONTROLLER_MANAGER, &[("User", CONTROLLER_MANAGER)]),
    ("system:node", &[]),
];

/// Bindings in `kube-system`.
pub(super) const BINDINGS: &[(&str, Subjects)] = &[
    ("extension-apiserver-authentication-reader", &[("User", CONTROLLER_MANAGER), ("User", "system:kube-scheduler")]),
    (
        "system:scaleup-component",
        &[("User", CONTROLLER_MANAGER), ("User", "system:kube-scheduler"), ("User", "system:kube-proxy")],
    ),
    ("system::leader-locking-kube-controller-manager", &[("User", CONTROLLER_MANAGER)]),
    ("system::leader-locking-kube-scheduler", &[("User", "system:kube-scheduler")]),
];
