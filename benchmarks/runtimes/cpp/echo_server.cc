// A C++ gRPC server that echoes one tensor: parse, copy the bytes, serialise, on one completion queue and one thread.
//
// `echo_server [CERTIFICATE KEY]` (PEM files; with them it speaks TLS) prints `ready grpc=HOST:PORT`.

#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include <grpcpp/grpcpp.h>

#include "open_inference/grpc_predict_v2.grpc.pb.h"

using Service = inference::GRPCInferenceService::AsyncService;

// A call that waits to begin, and then for its answer to be out.
class Call {
 public:
  virtual ~Call() = default;
  virtual void Proceed() = 0;
};

template <typename Request, typename Response>
class UnaryCall : public Call {
 public:
  using Accept = void (Service::*)(grpc::ServerContext*, Request*, grpc::ServerAsyncResponseWriter<Response>*,
                                   grpc::CompletionQueue*, grpc::ServerCompletionQueue*, void*);
  using Answer = void (*)(const Request&, Response*);

  UnaryCall(Service* service, grpc::ServerCompletionQueue* queue, Accept accept, Answer answer)
      : service_(service), queue_(queue), accept_(accept), answer_(answer), writer_(&context_) {
    (service_->*accept_)(&context_, &request_, &writer_, queue_, queue_, static_cast<Call*>(this));
  }

  void Proceed() override {
    if (answered_) {
      delete this;
      return;
    }
    new UnaryCall(service_, queue_, accept_, answer_);
    answered_ = true;
    Response response;
    answer_(request_, &response);
    writer_.Finish(response, grpc::Status::OK, static_cast<Call*>(this));
  }

 private:
  Service* service_;
  grpc::ServerCompletionQueue* queue_;
  Accept accept_;
  Answer answer_;
  grpc::ServerContext context_;
  Request request_;
  grpc::ServerAsyncResponseWriter<Response> writer_;
  bool answered_ = false;
};

void Infer(const inference::ModelInferRequest& request, inference::ModelInferResponse* response) {
  response->set_model_name(request.model_name());
  response->set_id(request.id());
  const auto& tensor = request.inputs(0);
  auto* output = response->add_outputs();
  output->set_name("output");
  output->set_datatype(tensor.datatype());
  *output->mutable_shape() = tensor.shape();
  response->add_raw_output_contents(request.raw_input_contents(0));
}

void Ready(const inference::ModelReadyRequest&, inference::ModelReadyResponse* response) { response->set_ready(true); }

std::string Read(const char* path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::shared_ptr<grpc::ServerCredentials> Credentials(int count, char** arguments) {
  if (count < 3) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options;
  options.pem_key_cert_pairs.push_back({Read(arguments[2]), Read(arguments[1])});
  return grpc::SslServerCredentials(options);
}

int main(int count, char** arguments) {
  Service service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", Credentials(count, arguments), &port);
  builder.SetMaxReceiveMessageSize(-1);
  builder.RegisterService(&service);
  auto queue = builder.AddCompletionQueue();
  auto server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  // As many as may come at once without one waiting to be accepted.
  for (int waiting = 0; waiting < 64; ++waiting) {
    new UnaryCall<inference::ModelInferRequest, inference::ModelInferResponse>(&service, queue.get(),
                                                                              &Service::RequestModelInfer, Infer);
  }
  new UnaryCall<inference::ModelReadyRequest, inference::ModelReadyResponse>(&service, queue.get(),
                                                                            &Service::RequestModelReady, Ready);
  std::printf("ready grpc=127.0.0.1:%d\n", port);
  std::fflush(stdout);
  void* tag = nullptr;
  bool ok = false;
  // SIGTERM ends it.
  while (queue->Next(&tag, &ok)) {
    if (ok) static_cast<Call*>(tag)->Proceed();
  }
  return 0;
}
