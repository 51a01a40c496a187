//! What rules of HTTPRoutes and GRPCRoutes do to requests and responses.

use super::common::{BackendObjectReference, LocalObjectReference};

data!(
    /// One thing that is done to requests or responses: `type` and the field of that name.
    HTTPRouteFilter "io.k8s.networking.gateway.v1.HTTPRouteFilter"
    requires {
        /// `RequestHeaderModifier`, `ResponseHeaderModifier`, `RequestMirror`, `RequestRedirect`, `URLRewrite`, `CORS` or `ExtensionRef`.
        r#type: String,
    }
    {
        /// Changes headers of the request.
        request_header_modifier: Option<HTTPHeaderFilter>,
        /// Changes headers of the response.
        response_header_modifier: Option<HTTPHeaderFilter>,
        /// Sends a copy of the request elsewhere and ignores the answer. May be repeated.
        request_mirror: Option<HTTPRequestMirrorFilter>,
        /// Answers with a redirect.
        request_redirect: Option<HTTPRequestRedirectFilter>,
        /// Changes host and path on the way to the backend.
        url_rewrite: Option<HTTPURLRewriteFilter>,
        /// Answers preflight requests and adds CORS headers.
        cors: Option<HTTPCORSFilter>,
        /// A filter of the controller's own.
        extension_ref: Option<LocalObjectReference>,
    }
);

data!(
    /// Changes of headers. A name may be in one of the three lists only.
    HTTPHeaderFilter "io.k8s.networking.gateway.v1.HTTPHeaderFilter" {
        /// Headers that replace others of the same name. At most 16, each name once.
        set: Vec<HTTPHeader>,
        /// Headers that are added to others of the same name. At most 16, each name once.
        add: Vec<HTTPHeader>,
        /// Names of headers that are taken away. At most 16.
        remove: Vec<String>,
    }
);

data!(
    /// A header.
    HTTPHeader "io.k8s.networking.gateway.v1.HTTPHeader"
    requires {
        /// Name; case does not matter.
        name: String,
        /// Value.
        value: String,
    }
    {}
);

data!(
    /// Sends a copy of requests elsewhere.
    HTTPRequestMirrorFilter "io.k8s.networking.gateway.v1.HTTPRequestMirrorFilter"
    requires {
        /// Where to.
        backend_ref: BackendObjectReference,
    }
    {
        /// Share of requests, 0 to 100; all if neither this nor `fraction` is set.
        percent: Option<i32>,
        /// Share of requests as a fraction.
        fraction: Option<Fraction>,
    }
);

data!(
    /// A fraction.
    Fraction "io.k8s.networking.gateway.v1.Fraction"
    requires {
        /// Number above; at most the one below.
        numerator: i32,
    }
    {
        /// Number below; 100 if absent.
        denominator: Option<i32>,
    }
);

data!(
    /// Answers with a redirect. What is absent stays as in the request.
    HTTPRequestRedirectFilter "io.k8s.networking.gateway.v1.HTTPRequestRedirectFilter" {
        /// `http` or `https`.
        scheme: Option<String>,
        /// Host.
        hostname: Option<String>,
        /// Path.
        path: Option<HTTPPathModifier>,
        /// Port. If absent: the scheme's own if `scheme` is set, else the listener's.
        port: Option<i32>,
        /// `302` (default), `301`, `303`, `307` or `308`.
        status_code: Option<i32>,
    }
);

data!(
    /// Changes host and path on the way to the backend.
    HTTPURLRewriteFilter "io.k8s.networking.gateway.v1.HTTPURLRewriteFilter" {
        /// Host.
        hostname: Option<String>,
        /// Path.
        path: Option<HTTPPathModifier>,
    }
);

data!(
    /// A changed path: `type` and the field of that name.
    HTTPPathModifier "io.k8s.networking.gateway.v1.HTTPPathModifier"
    requires {
        /// `ReplaceFullPath` or `ReplacePrefixMatch` (needs a rule with one match, of type `PathPrefix`).
        r#type: String,
    }
    {
        /// The new path. At most 1024 characters.
        replace_full_path: Option<String>,
        /// What stands for the prefix that matched. At most 1024 characters.
        replace_prefix_match: Option<String>,
    }
);

data!(
    /// Cross-origin resource sharing.
    HTTPCORSFilter "io.k8s.networking.gateway.v1.HTTPCORSFilter" {
        /// Origins that are allowed: `https://a.example`, `https://*.a.example`, or `*` alone. At most 64.
        allow_origins: Vec<String>,
        /// Whether requests may carry credentials.
        allow_credentials: Option<bool>,
        /// Methods that are allowed, or `*` alone. At most 9.
        allow_methods: Vec<String>,
        /// Request headers that are allowed, or `*` alone. At most 64.
        allow_headers: Vec<String>,
        /// Response headers that scripts may read, or `*` alone. At most 64.
        expose_headers: Vec<String>,
        /// Seconds for which browsers may remember the answer to a preflight request; 5 if absent.
        max_age: Option<i32>,
    }
);
