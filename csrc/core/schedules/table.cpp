#include <utility>

#include "core/error.h"
#include "core/schedule.h"

namespace crossover {
namespace {

struct Table {
  std::vector<PeerRow> rows;
  std::vector<std::vector<int>> sends;  // per rank, ascending
  std::vector<double> keeps;            // per rank; kColumn: the diagonal
};

Table with_sends(std::vector<PeerRow> rows, Stochasticity property) {
  std::vector<std::vector<int>> sends(rows.size());
  std::vector<double> keeps(rows.size(), 1.0);
  for (size_t receiver = 0; receiver < rows.size(); ++receiver) {
    for (const WeightedPeer& source : rows[receiver]) {
      sends[source.peer].push_back(static_cast<int>(receiver));
      if (property == Stochasticity::kColumn) keeps[source.peer] -= source.weight;
    }
  }
  return {std::move(rows), std::move(sends), std::move(keeps)};
}

class TableSchedule final : public PeerSchedule {
 public:
  TableSchedule(std::vector<Table> tables, Stochasticity property, bool rotate_by_segment)
      : tables_(std::move(tables)), property_(property), rotate_by_segment_(rotate_by_segment) {}
  std::string_view name() const override { return "table"; }
  int size() const override { return static_cast<int>(tables_[0].rows.size()); }
  Stochasticity stochasticity() const override { return property_; }
  std::vector<PeerRow> rows(const RoundKey& key) const override { return table(key).rows; }
  Neighbours neighbours(const RoundKey& key, int rank) const override {
    const Table& draw = table(key);
    return {draw.rows[rank], draw.sends[rank], draw.keeps[rank]};
  }

 private:
  const Table& table(const RoundKey& key) const {
    const uint64_t period = tables_.size();
    const uint64_t shift = rotate_by_segment_ ? key.segment % period : 0;
    return tables_[(key.round % period + shift) % period];
  }

  const std::vector<Table> tables_;
  const Stochasticity property_;
  const bool rotate_by_segment_;
};

}  // namespace

std::unique_ptr<PeerSchedule> table_schedule(std::vector<std::vector<PeerRow>> tables,
                                             Stochasticity property, bool rotate_by_segment) {
  if (tables.empty()) throw InvalidArgument("tables: expected at least one, got none");
  const size_t size = tables[0].size();
  if (size == 0) throw InvalidArgument("table 0: expected at least one row, got none");
  std::vector<Table> checked;
  for (size_t index = 0; index < tables.size(); ++index) {
    const std::string where = "table " + std::to_string(index);
    if (tables[index].size() != size) {
      throw InvalidArgument(where + ": expected " + std::to_string(size) +
                            " rows as in table 0, got " + std::to_string(tables[index].size()));
    }
    check_rows(tables[index], property, where);
    checked.push_back(with_sends(std::move(tables[index]), property));
  }
  return std::make_unique<TableSchedule>(std::move(checked), property, rotate_by_segment);
}

}  // namespace crossover
