#pragma once
#include "coordinator/protocol/csv.pb.h"
#include "csvfs/base/error.h"

namespace csv::protocol {

/// An Error as it crosses the wire, and back. An unknown code becomes EIO with its message.
wire::Failure encode(const Error& error);
Error decode(const wire::Failure& failure);

}  // namespace csv::protocol
