//! BackendTLSPolicy.

use std::collections::BTreeMap;

use super::common::LocalObjectReference;

data!(
    /// Specification of a BackendTLSPolicy.
    BackendTLSPolicySpec "io.k8s.networking.gateway.v1.BackendTLSPolicySpec"
    requires {
        /// Services (or one port of them) of the policy's namespace. 1 to 16.
        target_refs: Vec<LocalPolicyTargetReferenceWithSectionName>,
        /// How the backend's certificate is checked.
        validation: BackendTLSPolicyValidation,
    }
    {
        /// Settings of the controller's own. At most 16.
        options: BTreeMap<String, String>,
    }
);

data!(
    /// What a policy applies to.
    LocalPolicyTargetReferenceWithSectionName "io.k8s.networking.gateway.v1.LocalPolicyTargetReferenceWithSectionName"
    requires {
        /// API group; empty for Service.
        group: String,
        /// Kind.
        kind: String,
        /// Name.
        name: String,
    }
    {
        /// Name of a Service's port; all if absent.
        section_name: Option<String>,
    }
);

data!(
    /// How the backend's certificate is checked. Exactly one of `caCertificateRefs` and `wellKnownCACertificates` is set.
    BackendTLSPolicyValidation "io.k8s.networking.gateway.v1.BackendTLSPolicyValidation"
    requires {
        /// Server name that is asked for (SNI) and, without `subjectAltNames`, expected in the certificate.
        hostname: String,
    }
    {
        /// ConfigMaps of the policy's namespace with certificates of authorities in `ca.crt`. At most 8.
        #[serde(rename = "caCertificateRefs")]
        ca_certificate_refs: Vec<LocalObjectReference>,
        /// `System`: the authorities that the load balancer's machine trusts.
        #[serde(rename = "wellKnownCACertificates")]
        well_known_ca_certificates: Option<String>,
        /// Names of which the certificate must have one. At most 5.
        subject_alt_names: Vec<SubjectAltName>,
    }
);

data!(
    /// A name in a certificate: `type` and the field of that name.
    SubjectAltName "io.k8s.networking.gateway.v1.SubjectAltName"
    requires {
        /// `Hostname` or `URI`.
        r#type: String,
    }
    {
        /// A host name, perhaps `*.` and a domain.
        hostname: Option<String>,
        /// A URI, e.g. a SPIFFE ID.
        uri: Option<String>,
    }
);
