// Runs an exported model as a C++ server does: no Python, one model that is
// shared by all threads, tensors by the names that the SignatureDef gives.
//
//   serving_check MODEL_DIR CASES_DIR [--threads=8 --seconds=60]
//
// CASES_DIR/NAME/ holds `signature` (its name), `inputs/KEY.pb` (TensorProtos)
// and, where the call must fail, `error` (a part of the message). What a call
// gives is written to `outputs/KEY.pb`. With --threads and --seconds all cases
// are then repeated from many threads: answers must not change, and the memory
// must not grow.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor.pb.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/platform/path.h"
#include "tensorflow/core/protobuf/meta_graph.pb.h"
#include "tensorflow/core/public/session.h"

namespace {

using tensorflow::Env;
using tensorflow::Tensor;
using tensorflow::io::JoinPath;

// Of floats: threads may add up in another order.
constexpr double kTolerance = 1e-5;
// How much the memory may grow once every thread has warmed up.
constexpr double kGrowth = 1.05;
constexpr double kGrowthMb = 16;

struct Case {
  std::string name;
  std::string path;
  std::string error;  // Part of the message; empty: the call must succeed.
  std::vector<std::pair<std::string, Tensor>> feeds;
  std::vector<std::string> keys;     // Of the outputs.
  std::vector<std::string> fetches;  // Their tensors.
  std::vector<Tensor> first;         // What the first run gave.
};

struct Flags {
  std::string model;
  std::string cases;
  int threads = 0;
  double seconds = 0;
};

[[noreturn]] void Fail(const std::string& message) {
  std::cerr << "serving_check: " << message << std::endl;
  // Other threads may still run the model: nothing is to be destroyed.
  std::_Exit(1);
}

void Check(const absl::Status& status, const std::string& where) {
  if (!status.ok()) Fail(where + ": " + status.ToString());
}

Flags ParseFlags(int argc, char** argv) {
  Flags flags;
  std::vector<std::string> places;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const std::string value = arg.substr(arg.find('=') + 1);
    if (arg.rfind("--threads=", 0) == 0) {
      flags.threads = std::atoi(value.c_str());
    } else if (arg.rfind("--seconds=", 0) == 0) {
      flags.seconds = std::atof(value.c_str());
    } else {
      places.push_back(arg);
    }
  }
  if (places.size() != 2) {
    Fail("usage: serving_check MODEL_DIR CASES_DIR [--threads=8 --seconds=60]");
  }
  flags.model = places[0];
  flags.cases = places[1];
  return flags;
}

std::string ReadText(const std::string& path) {
  std::string text;
  Check(ReadFileToString(Env::Default(), path, &text), path);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::vector<std::string> Children(const std::string& path) {
  std::vector<std::string> names;
  Check(Env::Default()->GetChildren(path, &names), path);
  std::sort(names.begin(), names.end());
  return names;
}

Case ReadCase(const std::string& path, const std::string& name,
              const tensorflow::MetaGraphDef& graph) {
  Case read;
  read.name = name;
  read.path = path;
  const std::string error = JoinPath(path, "error");
  if (Env::Default()->FileExists(error).ok()) read.error = ReadText(error);

  const std::string signature = ReadText(JoinPath(path, "signature"));
  const auto found = graph.signature_def().find(signature);
  if (found == graph.signature_def().end()) {
    Fail(name + ": the model has no signature " + signature);
  }
  for (const std::string& file : Children(JoinPath(path, "inputs"))) {
    const std::string key = file.substr(0, file.rfind(".pb"));
    const auto input = found->second.inputs().find(key);
    if (input == found->second.inputs().end()) {
      Fail(name + ": " + signature + " has no input " + key);
    }
    tensorflow::TensorProto proto;
    Check(ReadBinaryProto(Env::Default(), JoinPath(path, "inputs", file),
                          &proto),
          name);
    Tensor tensor;
    if (!tensor.FromProto(proto)) Fail(name + ": no tensor in " + file);
    read.feeds.emplace_back(input->second.name(), tensor);
  }
  // A proto's map has no order of its own.
  std::map<std::string, std::string> outputs;
  for (const auto& [key, info] : found->second.outputs()) {
    outputs[key] = info.name();
  }
  for (const auto& [key, tensor] : outputs) {
    read.keys.push_back(key);
    read.fetches.push_back(tensor);
  }
  return read;
}

// Runs a case once; an expected error leaves no outputs.
std::vector<Tensor> Run(tensorflow::Session* session, const Case& of) {
  std::vector<Tensor> outputs;
  const absl::Status status =
      session->Run(of.feeds, of.fetches, {}, &outputs);
  if (of.error.empty()) {
    Check(status, of.name);
    return outputs;
  }
  if (status.ok()) Fail(of.name + ": did not fail");
  if (status.ToString().find(of.error) == std::string::npos) {
    Fail(of.name + ": failed without \"" + of.error +
         "\": " + status.ToString());
  }
  return {};
}

void Write(const Case& done) {
  const std::string folder = JoinPath(done.path, "outputs");
  Check(Env::Default()->RecursivelyCreateDir(folder), folder);
  for (size_t i = 0; i < done.first.size(); ++i) {
    tensorflow::TensorProto proto;
    // Python cannot read strings from a proto's raw content.
    if (done.first[i].dtype() == tensorflow::DT_STRING) {
      done.first[i].AsProtoField(&proto);
    } else {
      done.first[i].AsProtoTensorContent(&proto);
    }
    const std::string path = JoinPath(folder, done.keys[i] + ".pb");
    Check(WriteBinaryProto(Env::Default(), path, proto), path);
  }
}

bool Same(const Tensor& wanted, const Tensor& found) {
  if (wanted.dtype() != found.dtype() || wanted.shape() != found.shape()) {
    return false;
  }
  if (wanted.dtype() == tensorflow::DT_STRING) {
    const auto a = wanted.flat<tensorflow::tstring>();
    const auto b = found.flat<tensorflow::tstring>();
    return std::equal(a.data(), a.data() + a.size(), b.data());
  }
  if (wanted.dtype() != tensorflow::DT_FLOAT) {
    return wanted.tensor_data() == found.tensor_data();
  }
  const auto a = wanted.flat<float>();
  const auto b = found.flat<float>();
  // Features may be of any size: relative to the largest of them.
  double scale = 1;
  for (int64_t i = 0; i < a.size(); ++i) {
    scale = std::max(scale, std::abs(double{a(i)}));
  }
  for (int64_t i = 0; i < a.size(); ++i) {
    // Written so that NaN is a difference.
    if (!(std::abs(double{a(i)} - b(i)) <= kTolerance * scale)) return false;
  }
  return true;
}

double ResidentMb() {
  double total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE) / (1 << 20);
}

void Repeat(tensorflow::Session* session, const std::vector<Case>& cases,
            const Flags& flags) {
  std::atomic<bool> stop{false};
  std::atomic<int64_t> calls{0};
  const auto work = [&](int thread) {
    // Threads start at different cases, so that signatures mix.
    for (size_t at = thread; !stop; ++at) {
      const Case& next = cases[at % cases.size()];
      const std::vector<Tensor> outputs = Run(session, next);
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (!Same(next.first[i], outputs[i])) {
          Fail(next.name + "/" + next.keys[i] + " changed when repeated");
        }
      }
      ++calls;
    }
  };
  const auto start = std::chrono::steady_clock::now();
  const std::chrono::duration<double> time(flags.seconds);
  std::vector<std::thread> threads;
  for (int i = 0; i < flags.threads; ++i) threads.emplace_back(work, i);
  std::this_thread::sleep_until(start + time / 5);
  const double before = ResidentMb();
  std::this_thread::sleep_until(start + time);
  const double after = ResidentMb();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double> took =
      std::chrono::steady_clock::now() - start;
  std::cout << flags.threads << " threads: " << calls << " calls, "
            << calls / took.count() << " a second; memory " << before
            << " MB after a fifth of the time, " << after << " MB at the end"
            << std::endl;
  if (after > kGrowth * before + kGrowthMb) Fail("the memory grew");
}

}  // namespace

int main(int argc, char** argv) {
  const Flags flags = ParseFlags(argc, argv);
  tensorflow::SavedModelBundle bundle;
  Check(tensorflow::LoadSavedModel({}, {}, flags.model, {"serve"}, &bundle),
        flags.model);
  if (bundle.GetSignatures().count("serving_default") == 0) {
    Fail(flags.model + ": has no signature serving_default");
  }
  std::vector<Case> cases;
  for (const std::string& name : Children(flags.cases)) {
    cases.push_back(ReadCase(JoinPath(flags.cases, name), name,
                             bundle.meta_graph_def));
    cases.back().first = Run(bundle.GetSession(), cases.back());
    Write(cases.back());
  }
  if (cases.empty()) Fail(flags.cases + ": has no cases");
  std::cout << cases.size() << " cases ran" << std::endl;
  if (flags.threads > 0 && flags.seconds > 0) {
    Repeat(bundle.GetSession(), cases, flags);
  }
  return 0;
}
