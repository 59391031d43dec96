//! A data plane in memory that can fail at any call, and notes the order of calls.

use std::collections::BTreeMap;

use netd_common::abi;

use super::{Actual, Attached, Attachment, Dataplane, DataplaneError, Row, RowKey};
use crate::collect::FlowFilter;

/// The data plane of the tests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    /// What is in force.
    pub(crate) actual: Actual,
    /// Kernel settings.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Flows that were ended.
    pub(crate) ended: Vec<FlowFilter>,
    /// The call that fails, counted from 0.
    pub(crate) fail_at: Option<usize>,
    /// Calls so far.
    pub(crate) calls: usize,
}

impl Fake {
    fn call(&mut self) -> Result<(), DataplaneError> {
        let call = self.calls;
        self.calls += 1;
        if self.fail_at == Some(call) {
            return Err(DataplaneError::Injected(call));
        }
        Ok(())
    }
}

impl Dataplane for Fake {
    fn put(&mut self, row: &Row) -> Result<(), DataplaneError> {
        self.call()?;
        self.actual.tables.put(*row);
        Ok(())
    }

    fn remove(&mut self, key: &RowKey) -> Result<(), DataplaneError> {
        self.call()?;
        self.actual.tables.remove(*key);
        Ok(())
    }

    fn attach(&mut self, attachment: Attachment, _: &str) -> Result<(), DataplaneError> {
        self.call()?;
        self.actual
            .attachments
            .insert(attachment, Attached::Current);
        Ok(())
    }

    fn detach(&mut self, attachment: Attachment) -> Result<(), DataplaneError> {
        self.call()?;
        self.actual.attachments.remove(&attachment);
        Ok(())
    }

    fn configure(&mut self, config: &abi::Config) -> Result<(), DataplaneError> {
        self.call()?;
        let epoch = self.actual.config.epoch;
        self.actual.config = abi::Config { epoch, ..*config };
        Ok(())
    }

    fn bump_epoch(&mut self) -> Result<(), DataplaneError> {
        self.call()?;
        self.actual.config.epoch += 1;
        Ok(())
    }

    fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), DataplaneError> {
        self.call()?;
        self.sysctls.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    fn end_flows(&mut self, filter: &FlowFilter) -> Result<usize, DataplaneError> {
        self.call()?;
        self.ended.push(filter.clone());
        Ok(0)
    }
}
