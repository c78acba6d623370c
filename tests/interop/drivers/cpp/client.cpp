// A client of C++ gRPC that makes the calls that it is told to make: see ../../driven.py for what the lines hold.
#include <grpc/grpc.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/byte_buffer.h>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace {

using google::protobuf::ListValue;
using google::protobuf::Struct;
using google::protobuf::Value;
using grpc::ByteBuffer;

const char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string ToBase64(const std::string& raw) {
  std::string out;
  unsigned bits = 0, held = 0;
  for (unsigned char byte : raw) {
    held = held << 8 | byte;
    for (bits += 8; bits >= 6; bits -= 6) out += kDigits[held >> (bits - 6) & 63];
  }
  if (bits) out += kDigits[held << (6 - bits) & 63];
  while (out.size() % 4) out += '=';
  return out;
}

std::string FromBase64(const std::string& text) {
  std::string out;
  unsigned bits = 0, held = 0;
  for (char digit : text) {
    const char* at = std::char_traits<char>::find(kDigits, 64, digit);
    if (at == nullptr) break;
    held = held << 6 | static_cast<unsigned>(at - kDigits);
    if ((bits += 6) >= 8) out += static_cast<char>(held >> (bits -= 8) & 255);
  }
  return out;
}

const Value* Find(const Struct& table, const std::string& key) {
  auto found = table.fields().find(key);
  return found == table.fields().end() || found->second.kind_case() == Value::kNullValue ? nullptr : &found->second;
}

std::string Text(const Struct& table, const std::string& key) {
  const Value* value = Find(table, key);
  return value == nullptr ? "" : value->string_value();
}

double Number(const Struct& table, const std::string& key, double otherwise) {
  const Value* value = Find(table, key);
  return value == nullptr ? otherwise : value->number_value();
}

const ListValue& List(const Struct& table, const std::string& key) {
  static const ListValue none;
  const Value* value = Find(table, key);
  return value == nullptr ? none : value->list_value();
}

// Either {"base64": ...}, or {"file": path}.
std::string Bytes(const Struct& said) {
  if (Find(said, "file") == nullptr) return FromBase64(Text(said, "base64"));
  std::ifstream file(Text(said, "file"), std::ios::binary);
  std::stringstream all;
  all << file.rdbuf();
  return all.str();
}

ByteBuffer ToBuffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return ByteBuffer(&slice, 1);
}

std::string ToString(const ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  buffer.Dump(&slices);
  std::string out;
  for (const auto& slice : slices) out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return out;
}

class Lines {
 public:
  explicit Lines(std::string folder) : folder_(std::move(folder)) {}

  void Say(const Struct& line) {
    std::string text;
    google::protobuf::util::MessageToJsonString(line, &text);
    std::lock_guard<std::mutex> lock(mutex_);
    std::cout << text << std::endl;
  }

  // What is large goes by a file that the reader removes.
  Value Answer(const std::string& bytes) {
    Value said;
    auto& fields = *said.mutable_struct_value()->mutable_fields();
    if (bytes.size() <= 32768) {
      fields["base64"].set_string_value(ToBase64(bytes));
      return said;
    }
    std::string path;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      path = folder_ + "/cpp-" + std::to_string(files_++);
    }
    std::ofstream(path, std::ios::binary) << bytes;
    fields["file"].set_string_value(path);
    return said;
  }

 private:
  std::mutex mutex_;
  std::string folder_;
  int files_ = 0;
};

bool IsBinary(const std::string& key) { return key.size() > 4 && key.compare(key.size() - 4, 4, "-bin") == 0; }

Value Pairs(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata) {
  Value said;
  auto* list = said.mutable_list_value();
  for (const auto& entry : metadata) {
    std::string key(entry.first.data(), entry.first.size()), value(entry.second.data(), entry.second.size());
    auto* pair = list->add_values()->mutable_list_value();
    pair->add_values()->set_string_value(key);
    pair->add_values()->set_string_value(IsBinary(key) ? ToBase64(value) : value);
  }
  return said;
}

grpc_compression_algorithm Algorithm(const std::string& name) {
  return name == "gzip" ? GRPC_COMPRESS_GZIP : name == "deflate" ? GRPC_COMPRESS_DEFLATE : GRPC_COMPRESS_NONE;
}

// One call of any kind. It deletes itself when it is over.
class Call : public grpc::ClientBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  Call(Lines* lines, const Struct& command) : lines_(lines), id_(Number(command, "id", 0)) {
    for (const Value& each : List(command, "messages").values()) messages_.push_back(ToBuffer(Bytes(each.struct_value())));
    for (const Value& each : List(command, "metadata").values()) {
      const auto& pair = each.list_value().values();
      const std::string key = pair[0].string_value(), value = pair[1].string_value();
      context->AddMetadata(key, IsBinary(key) ? FromBase64(value) : value);
    }
    const double timeout = Number(command, "timeout", 0);
    if (timeout > 0)
      context->set_deadline(std::chrono::system_clock::now() + std::chrono::microseconds(int64_t(timeout * 1e6)));
    if (Find(command, "compression") != nullptr) context->set_compression_algorithm(Algorithm(Text(command, "compression")));
    cancel_at_ = Number(command, "cancel_after_answers", -1);
  }

  void Start(grpc::GenericStub* stub, const std::string& path, bool unary) {
    if (unary) {
      stub->UnaryCall(context.get(), path, grpc::StubOptions(), &messages_[0], &incoming_, [this](grpc::Status status) {
        if (status.ok()) *answers_.mutable_list_value()->add_values() = lines_->Answer(ToString(incoming_));
        OnDone(status);
      });
      return;
    }
    stub->PrepareBidiStreamingCall(context.get(), path, grpc::StubOptions(), this);
    StartRead(&incoming_);
    Write();
    StartCall();
  }

  void OnWriteDone(bool ok) override {
    if (ok) Write();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    *answers_.mutable_list_value()->add_values() = lines_->Answer(ToString(incoming_));
    if (answers_.list_value().values_size() == cancel_at_) context->TryCancel();
    StartRead(&incoming_);
  }

  void OnDone(const grpc::Status& status) override {
    Struct line;
    auto& fields = *line.mutable_fields();
    fields["id"].set_number_value(id_);
    fields["code"].set_number_value(status.error_code());
    fields["message"].set_string_value(status.error_message());
    if (answers_.kind_case() != Value::kListValue) answers_.mutable_list_value();
    fields["answers"] = answers_;
    fields["initial"] = Pairs(context->GetServerInitialMetadata());
    fields["trailing"] = Pairs(context->GetServerTrailingMetadata());
    // Only then: the last reference to a channel must not be given up here, where gRPC would wait for this very thread.
    Lines* lines = lines_;
    delete this;
    lines->Say(line);
  }

  std::shared_ptr<grpc::ClientContext> context = std::make_shared<grpc::ClientContext>();

 private:
  void Write() {
    if (written_ == messages_.size())
      StartWritesDone();
    else
      StartWrite(&messages_[written_++]);
  }

  Lines* lines_;
  double id_;
  std::vector<ByteBuffer> messages_;
  size_t written_ = 0;
  ByteBuffer incoming_;
  Value answers_;
  double cancel_at_;
};

class Client {
 public:
  explicit Client(std::string folder) : lines_(std::move(folder)) {}

  void Do(const Struct& command) {
    const std::string what = Text(command, "do");
    const int channel = int(Number(command, "channel", 0));
    if (what == "open")
      stubs_[channel] = std::make_unique<grpc::GenericStub>(Open(command));
    else if (what == "close")
      stubs_.erase(channel);
    else if (what == "cancel")
      Cancel(int(Number(command, "call", 0)));
    else
      Begin(command, stubs_.at(channel).get());
  }

 private:
  std::shared_ptr<grpc::Channel> Open(const Struct& command) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    // Channels to the same place have connections of their own.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    if (Find(command, "compression") != nullptr) arguments.SetCompressionAlgorithm(Algorithm(Text(command, "compression")));
    if (const Value* options = Find(command, "options"))
      for (const auto& option : options->struct_value().fields())
        arguments.SetInt(option.first, int(option.second.number_value()));
    return grpc::CreateCustomChannel(Text(command, "target"), Credentials(command), arguments);
  }

  std::shared_ptr<grpc::ChannelCredentials> Credentials(const Struct& command) {
    const Value* tls = Find(command, "tls");
    if (tls == nullptr) return grpc::InsecureChannelCredentials();
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = Text(tls->struct_value(), "ca");
    options.pem_cert_chain = Text(tls->struct_value(), "certificate");
    options.pem_private_key = Text(tls->struct_value(), "key");
    return grpc::SslCredentials(options);
  }

  void Begin(const Struct& command, grpc::GenericStub* stub) {
    auto* call = new Call(&lines_, command);
    contexts_[int(Number(command, "id", 0))] = call->context;
    call->Start(stub, Text(command, "path"), Text(command, "kind") == "unary");
  }

  void Cancel(int id) {
    if (auto context = contexts_[id].lock()) context->TryCancel();
  }

  Lines lines_;
  std::map<int, std::unique_ptr<grpc::GenericStub>> stubs_;
  std::map<int, std::weak_ptr<grpc::ClientContext>> contexts_;
};

}  // namespace

int main(int, char** arguments) {
  // The library would be shut down with the last channel otherwise, which may take it ten seconds.
  grpc_init();
  Client client(arguments[1]);
  std::cout << "{\"version\": \"" << grpc::Version() << "\"}" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    Struct command;
    const auto parsed = google::protobuf::util::JsonStringToMessage(line, &command);
    if (!parsed.ok()) {
      std::cerr << "not understood: " << line << std::endl;
      return 1;
    }
    client.Do(command);
  }
  // Calls that are still under way have nobody who waits for them.
  std::_Exit(0);
}
