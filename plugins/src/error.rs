//! What can go wrong, by class: failure policies are per class.

use std::sync::Arc;
use std::time::Duration;

use crate::World;
use crate::check::clip;

/// Longest message: a plugin may have a part in it.
const MAX_MESSAGE_BYTES: usize = 512;

/// Kinds of failures, as in `spec.failurePolicy`, metrics and conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The module is not there: it could not be fetched, or not yet.
    Fetch,
    /// It is no component of its world, or does not compile within its limits.
    Compile,
    /// It stopped with an error: unreachable code, out of bounds, out of memory, out of stack.
    Trap,
    /// It used up its time or its fuel, or there was no room for an instance.
    Timeout,
    /// Its answer is not one.
    InvalidOutput,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Fetch, Self::Compile, Self::Trap, Self::Timeout, Self::InvalidOutput];

    /// Value of the metrics' label `class`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Compile => "compile",
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::InvalidOutput => "invalid_output",
        }
    }
}

/// Why a plugin gave no decision. What happens instead is up to the failure policy of its class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For the failure policy and metrics.
    pub class: Class,
    /// For people, without the plugin's name.
    pub message: Arc<str>,
    /// The plugin was not asked, because it failed too often or has no usable module.
    pub skipped: bool,
}

impl Failure {
    pub(crate) fn new(class: Class, message: impl AsRef<str>) -> Self {
        Self { class, message: clip(message.as_ref(), MAX_MESSAGE_BYTES).into(), skipped: false }
    }
}

/// What happens with a decision that a plugin could not take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The built-in policy decides.
    #[default]
    BuiltIn,
    /// The request is refused: 503 for a request, 500 for a write to the API; the pod waits.
    Refuse,
}

/// One answer per class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailurePolicy {
    pub fetch: OnFailure,
    pub compile: OnFailure,
    pub trap: OnFailure,
    pub timeout: OnFailure,
    pub invalid_output: OnFailure,
}

impl FailurePolicy {
    /// What this class means.
    pub const fn on(&self, class: Class) -> OnFailure {
        match class {
            Class::Fetch => self.fetch,
            Class::Compile => self.compile,
            Class::Trap => self.trap,
            Class::Timeout => self.timeout,
            Class::InvalidOutput => self.invalid_output,
        }
    }

    /// The same for every class.
    pub const fn always(answer: OnFailure) -> Self {
        Self { fetch: answer, compile: answer, trap: answer, timeout: answer, invalid_output: answer }
    }
}

/// Why a module is not used.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Not even looked at.
    #[error("the module has {bytes} bytes, at most {most} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// No WebAssembly, damaged, or neither a component nor a core module that says how it becomes one.
    #[error("not a WebAssembly component: {0}")]
    Invalid(String),
    /// It imports something, or lacks the exports of its world.
    #[error("not a component of the world {world}: {why}")]
    WrongWorld {
        /// What it was to be.
        world: World,
        /// What differs.
        why: String,
    },
    /// Compiling it takes too much.
    #[error("compiling takes more than {cpu:?} of CPU time or {memory_bytes} bytes of memory")]
    TooExpensive {
        /// Limit.
        cpu: Duration,
        /// Limit.
        memory_bytes: u64,
    },
    /// It never fits into the limits of an instance.
    #[error("does not fit its limits: {0}")]
    Limits(String),
    /// It fails before it is asked anything.
    #[error("does not start: {0}")]
    Start(Failure),
    /// Not the module's fault: worth another try.
    #[error("the compiler could not be run")]
    Compiler(#[source] std::io::Error),
}
