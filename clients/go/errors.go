package tokenwire

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "tokenwire/tokenwirev1"
)

// Error is what went wrong, with the details that a server sends: google.rpc's ErrorInfo, BadRequest and RetryInfo.
type Error struct {
	Code    codes.Code
	Message string
	// Reason is a stable string that programs may compare.
	Reason string
	// Fields are the wrong ones, by their path in the request.
	Fields []string
	// RetryAfter is when another try may succeed; zero: the server did not say.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Code.String() + ": " + e.Message }

// refused is a value that is not sent.
func refused(field, said string) *Error {
	message := field + ": " + said
	return &Error{Code: codes.InvalidArgument, Message: message, Reason: "INVALID_REQUEST", Fields: []string{field}}
}

// ErrorOf reads the details of a call's error. It is nil for nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	if already, ok := err.(*Error); ok {
		return already
	}
	return fromStatus(status.Convert(err))
}

// FinishError reads the error inside a terminal event: field for field a google.rpc.Status.
func FinishError(finish *pb.Finish) error {
	if finish.GetError() == nil {
		return nil
	}
	parsed := &spb.Status{}
	bytes, err := proto.Marshal(finish.GetError())
	if err == nil {
		err = proto.Unmarshal(bytes, parsed)
	}
	if err != nil {
		return &Error{Code: codes.Code(finish.GetError().GetCode()), Message: finish.GetError().GetMessage()}
	}
	return fromStatus(status.FromProto(parsed))
}

func fromStatus(s *status.Status) *Error {
	found := &Error{Code: s.Code(), Message: s.Message()}
	for _, detail := range s.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			found.Reason = detail.GetReason()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				found.Fields = append(found.Fields, violation.GetField())
			}
		case *errdetails.RetryInfo:
			found.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return found
}
